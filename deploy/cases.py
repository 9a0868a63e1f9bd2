"""Installations that the tests render: typical values, and the extremes."""

from __future__ import annotations

from typing import Any

from .render import WATCH

SCHEDULES: list[dict[str, Any]] = [
    {
        "name": "tidy",
        "cron": "0 6 * * mon-fri",
        "repositories": [{"url": "https://git.example.com/shop/api.git"}],
        "prompt": "Tidy up: 'quotes', {{ braces }}, <tags> & ümlauts.\nThen test.",
    },
    {
        "name": "update-dependencies",
        "cron": "@daily",
        "timezone": "Europe/Berlin",
        "enabled": False,
        "concurrency": "Allow",
        "starting_deadline": "1h30m",
        "repositories": [{"url": "https://git.example.com/a.git", "branch": "next"}],
        "prompt": "Update.",
        "push": True,
        "push_branch": "dependencies",
        "model": None,
        "max_usd": 5,
        "wall": "45m",
    },
]
"""What the CronJobs of a chart have to be able to say."""

_EVERYTHING: dict[str, Any] = {
    **WATCH,
    "fullnameOverride": "night-watch",
    "image": {
        "repository": "images.example.com/sre/midwatch",
        "digest": "sha256:" + "0123456789abcdef" * 4,
    },
    "imagePullSecrets": ["images"],
    "anthropic": {"baseUrl": "https://gateway.example.com"},
    "database": {
        "upgrade": {"mode": "hook", "secret": {"name": "midwatch-owner", "key": "url"}}
    },
    "extraEnv": [{"name": "SSL_CERT_FILE", "value": "/etc/company/ca.pem"}],
    "extraVolumes": [{"name": "company", "configMap": {"name": "company-ca"}}],
    "extraVolumeMounts": [{"name": "company", "mountPath": "/etc/company"}],
    "settings": {
        **WATCH["settings"],
        "agent": {"concurrency": 4},
        "log": {"level": "debug"},
        "sessions": {
            "max_turns": 200,
            "permission_mode": "dontAsk",
            "allowed_tools": ["Bash(git log:*)", "Read"],
            "cache_size": 20000000000,
            "trust_repository": False,
        },
        "operator": {
            "storage": "claim",
            "claim_size": "50Gi",
            "node_selector": {"pool": "agents"},
            "pod_annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "no"},
            "runtime_class": "kata",
            "priority_class": "low",
            "model": "claude-sonnet-5-5",
            "variables": {"MIDWATCH_SESSIONS__WALL": "2h"},
        },
        "content": {"max_size": "50GB"},
        "schedules": SCHEDULES,
        "runbooks": {
            "repositories": [
                {"url": "https://git.example.com/sre/runbooks", "folder": "ops"}
            ],
            "fetch_from": ["wiki.example.com"],
        },
        "server": {
            "url": "https://midwatch.example.com",
            "proxy": {"addresses": ["10.0.0.0/24"]},
            "roles": {"viewers": ["*@example.com"], "operators": ["group:sre"]},
        },
    },
    "server": {
        "enabled": True,
        "replicas": 2,
        "service": {"port": 8470, "annotations": {"team": "sre"}},
        "tolerations": [{"key": "pool", "operator": "Exists"}],
    },
    "monitor": {
        "enabled": True,
        "replicas": 3,
        "priorityClassName": "important",
        "runtimeClassName": "gvisor",
    },
    "agents": {
        "enabled": True,
        "autoscaling": {"enabled": True, "maxReplicas": 9},
        "tolerations": [{"key": "pool", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "serviceAccount": {"create": True, "annotations": {"role": "reader"}},
        "podAnnotations": {"team": "sre"},
        "podLabels": {"team": "sre"},
    },
    "operator": {
        "enabled": True,
        "namespaces": ["team-a", "team-b"],
        "nodeSelector": {"pool": "system"},
    },
    "content": {
        "enabled": True,
        "persistence": {"size": "1Ti", "storageClass": "fast"},
    },
    "metrics": {
        "serviceMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "interval": "1m",
        }
    },
    "networkPolicy": {
        "sessionNamespaces": ["team-c"],
        "serverClients": [
            {
                "namespaceSelector": {
                    "matchLabels": {"kubernetes.io/metadata.name": "ingress"}
                }
            }
        ],
        "scrapers": [
            {
                "namespaceSelector": {
                    "matchLabels": {"kubernetes.io/metadata.name": "monitoring"}
                }
            }
        ],
        "apiServer": {"cidrs": ["10.0.0.1/32", "fd00::1/128"]},
        "sessions": {"except": ["10.0.0.0/8", "fd00::/8"], "ports": [443, 22]},
    },
}

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "watch": WATCH,
    "both": {
        **WATCH,
        "operator": {"enabled": True},
        "content": {"enabled": True},
    },
    "everything": _EVERYTHING,
    "server alone": {
        "server": {"enabled": True},
        "operator": {"enabled": False},
        "content": {"enabled": False},
    },
    "scraped sessions": {"metrics": {"serviceMonitor": {"enabled": True}}},
    "nothing": {
        "metrics": {"serviceMonitor": {"enabled": True}},
        "operator": {"enabled": False},
        "content": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "userRoles": {"enabled": False},
    },
    "own namespaces": {"operator": {"namespaces": ["team-a"]}},
    "schedules": {
        "operator": {"namespaces": ["team-a", "team-b"]},
        "schedules": {"namespace": "team-b"},
        "settings": {"schedules": SCHEDULES[:1], "operator": {"image": "own:1"}},
    },
    "claims": {"content": {"enabled": False}},
    "proxy elsewhere": {
        "content": {"enabled": False, "url": "https://content.example.com"}
    },
    "object store": {
        "content": {
            "objectStore": {
                "url": "s3://midwatch-content/team",
                "replicas": 3,
                "env": [{"name": "AWS_REGION", "value": "eu-central-1"}],
                "secret": "midwatch-bucket",
                "egress": {"ports": [443, 80]},
            },
            "serviceAccount": {
                "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}
            },
        }
    },
    "claim of one's own": {"content": {"persistence": {"existingClaim": "big-disk"}}},
    "without a key": {**WATCH, "anthropic": {"secret": {"name": ""}}},
    "own accounts": {
        **WATCH,
        "agents": {
            "enabled": True,
            "replicas": 1,
            "podDisruptionBudget": {"enabled": False},
            "serviceAccount": {"create": False, "name": "vault-reader"},
        },
        "database": {"upgrade": {"mode": "none"}},
    },
    "any user": {
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}
    },
}
