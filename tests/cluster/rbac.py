"""Who asks, and what they may: bearer tokens, service accounts, roles and bindings."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from midwatch.model import Json

from .api import Admit
from .errors import Refused
from .kinds import RBAC, Kind, Kinds
from .storage import State

MASTERS = "system:masters"
_RBAC = tuple(
    (RBAC, plural)
    for plural in ("roles", "rolebindings", "clusterroles", "clusterrolebindings")
)


@dataclass(frozen=True, slots=True)
class User:
    name: str
    groups: tuple[str, ...] = ()

    def is_admin(self) -> bool:
        return MASTERS in self.groups


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))
ADMIN = User("kubernetes-admin", (MASTERS, "system:authenticated"))


@dataclass(frozen=True, slots=True)
class Ask:
    """What somebody wants to do; `resource` may be `pods` or `pods/log`."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class _Bound:
    """A token ends with the objects that it is bound to: an account, perhaps a pod."""

    user: User
    uids: tuple[str, ...] = ()


class Access:
    """`enforced` false lets everybody with a valid token do everything."""

    def __init__(self, state: State, kinds: Kinds, *, enforced: bool) -> None:
        self._state, self._kinds = state, kinds
        self.enforced = enforced
        self._tokens: dict[str, _Bound] = {}
        self._granted: dict[tuple[User, str], tuple[int, list[Json]]] = {}

    def token(self, user: User, uids: tuple[str, ...] = ()) -> str:
        """A new token; it is valid as long as all objects with these uids are there."""
        token = secrets.token_urlsafe(32)
        self._tokens[token] = _Bound(user, uids)
        return token

    def token_for(self, namespace: str, account: str, pod_uid: str = "") -> str:
        """Of a service account, as the kubelet puts it into a pod. Raises KeyError."""
        found = self._state.get(("", "serviceaccounts"), (namespace, account))
        if found is None:
            raise KeyError(f"no service account {namespace}/{account}")
        groups = (
            "system:serviceaccounts",
            f"system:serviceaccounts:{namespace}",
            "system:authenticated",
        )
        user = User(f"system:serviceaccount:{namespace}:{account}", groups)
        uids = (found["metadata"]["uid"], *([pod_uid] if pod_uid else []))
        return self.token(user, uids)

    def user(self, header: str) -> User:
        """From an Authorization header. Raises Refused (401)."""
        if not header:
            return ANONYMOUS
        bound = self._tokens.get(header.removeprefix("Bearer ").strip())
        if bound is None or not all(self._state.with_uid(uid) for uid in bound.uids):
            raise Refused(401, "Unauthorized")
        return bound.user

    def check(self, user: User, ask: Ask) -> None:
        """Raises Refused (403)."""
        if not self.allowed(user, ask):
            where = (
                f' in the namespace "{ask.namespace}"'
                if ask.namespace
                else " at the cluster scope"
            )
            name = f' "{ask.name}"' if ask.name else ""
            full = f"{ask.resource}.{ask.group}".rstrip(".")
            raise Refused(
                403,
                f'{full}{name} is forbidden: User "{user.name}" cannot {ask.verb} resource'
                f' "{ask.resource}" in API group "{ask.group}"{where}',
                details={"name": ask.name, "group": ask.group, "kind": ask.resource},
            )

    def allowed(self, user: User, ask: Ask) -> bool:
        if user.is_admin() or (not self.enforced and user != ANONYMOUS):
            return True
        return any(_grants(rule, ask) for rule in self._rules(user, ask.namespace))

    def admission(self, user: User) -> Admit:
        """What is asked before this user's writes: nobody gives away what they do not have."""

        def admit(kind: Kind, new: Json, old: Json | None) -> None:
            if self.enforced and not user.is_admin():
                self._check_roles(user, kind, new, old)
                self._check_owners(user, new, old)

        return admit

    def _check_roles(self, user: User, kind: Kind, new: Json, old: Json | None) -> None:
        namespace = new["metadata"].get("namespace", "")
        name = new["metadata"]["name"]
        rules: list[Json] = []
        if kind.plural in ("roles", "clusterroles") and kind.group == RBAC:
            if old is None or old.get("rules") != new.get("rules"):
                rules = new.get("rules") or []
                verb, about = "escalate", Ask(
                    "escalate", RBAC, kind.plural, namespace, name
                )
        elif (
            kind.plural in ("rolebindings", "clusterrolebindings")
            and kind.group == RBAC
        ):
            reference = new["roleRef"]
            rules = self._role(reference, namespace)
            plural = f"{reference['kind'].lower()}s"
            verb, about = "bind", Ask(
                "bind", RBAC, plural, namespace, reference["name"]
            )
        if rules and not self.allowed(user, about):
            self._covered(
                user, namespace, rules, f"{kind.plural}.{kind.group}", name, verb
            )

    def _covered(
        self,
        user: User,
        namespace: str,
        rules: list[Json],
        full: str,
        name: str,
        verb: str,
    ) -> None:
        for ask in (ask for rule in rules for ask in _asks(rule, namespace)):
            if not self.allowed(user, ask):
                raise Refused(
                    403,
                    f'{full} "{name}" is forbidden: user "{user.name}" is attempting to grant'
                    f" RBAC permissions not currently held: {ask} (it may not {verb} either)",
                )

    def _check_owners(self, user: User, new: Json, old: Json | None) -> None:
        """As the admission plugin OwnerReferencesPermissionEnforcement, which OpenShift has on."""
        before = (old or {"metadata": {}})["metadata"].get("ownerReferences", [])
        meta = new["metadata"]
        for owner in meta.get("ownerReferences", ()):
            if owner.get("blockOwnerDeletion") and owner not in before:
                group = owner["apiVersion"].rpartition("/")[0]
                kind = next(
                    (
                        k
                        for k in self._kinds
                        if (k.group, k.kind) == (group, owner["kind"])
                    ),
                    None,
                )
                plural = kind.plural if kind else f"{owner['kind'].lower()}s"
                ask = Ask(
                    "update",
                    group,
                    f"{plural}/finalizers",
                    meta.get("namespace", ""),
                    owner["name"],
                )
                if not self.allowed(user, ask):
                    raise Refused(
                        403,
                        f'"{meta["name"]}" is forbidden: cannot set blockOwnerDeletion if an'
                        f" ownerReference refers to a resource you can't set finalizers on: {ask}",
                    )

    def _rules(self, user: User, namespace: str) -> list[Json]:
        """Return what roles grant this user; worked out anew after a change to a role or a binding."""
        latest = self._state.latest(*_RBAC)
        revision, rules = self._granted.get((user, namespace), (-1, []))
        if revision != latest:
            rules = list(self._bound_rules(user, namespace))
            self._granted[user, namespace] = latest, rules
        return rules

    def _bound_rules(self, user: User, namespace: str) -> Iterator[Json]:
        for binding in self._state.all((RBAC, "clusterrolebindings")):
            if _binds(binding, user):
                yield from self._role(binding["roleRef"], "")
        if namespace:
            for binding in self._state.all((RBAC, "rolebindings"), namespace):
                if _binds(binding, user):
                    yield from self._role(binding["roleRef"], namespace)

    def _role(self, reference: Json, namespace: str) -> list[Json]:
        if reference["kind"] == "ClusterRole":
            found = self._state.get((RBAC, "clusterroles"), ("", reference["name"]))
        else:
            found = self._state.get((RBAC, "roles"), (namespace, reference["name"]))
        return (found or {}).get("rules") or []


def _binds(binding: Json, user: User) -> bool:
    own = binding["metadata"].get("namespace", "")
    for subject in binding.get("subjects") or ():
        name = subject["name"]
        if subject["kind"] == "ServiceAccount":
            name = f"system:serviceaccount:{subject.get('namespace', own)}:{name}"
        if subject["kind"] == "Group" and name in user.groups:
            return True
        if subject["kind"] != "Group" and name == user.name:
            return True
    return False


def _grants(rule: Json, ask: Ask) -> bool:
    _, slash, sub = ask.resource.partition("/")
    resources = {ask.resource, "*", *([f"*/{sub}"] if slash else [])}
    names = rule.get("resourceNames") or ()
    return (
        bool({ask.verb, "*"} & set(rule.get("verbs", ())))
        and bool({ask.group, "*"} & set(rule.get("apiGroups", ())))
        and bool(resources & set(rule.get("resources", ())))
        and (not names or ask.name in names)
    )


def _asks(rule: Json, namespace: str) -> Iterator[Ask]:
    for group in rule.get("apiGroups", ()):
        for resource in rule.get("resources", ()):
            for verb in rule.get("verbs", ()):
                for name in rule.get("resourceNames") or ("",):
                    yield Ask(verb, group, resource, namespace, name)
