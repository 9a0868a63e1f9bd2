{{/* What all pods have: (dict "root" $ "component" … "values" … "settings" "true if it reads some").
A pod is made anew when its settings change. */}}
{{- define "midwatch.podMetadata" -}}
labels:
  {{- merge (include "midwatch.labels" . | fromYaml) .values.podLabels | toYaml | nindent 2 }}
annotations:
  {{- $settings := dict "midwatch.dev/settings" (include (printf "midwatch.settings.%s" .kind) .root | sha256sum) }}
  {{- merge $settings .values.podAnnotations | toYaml | nindent 2 }}
{{- end -}}

{{- define "midwatch.podBasics" -}}
serviceAccountName: {{ include "midwatch.account" . }}
{{- $reads := (include "midwatch.kubernetesSubjects" .root | fromYaml).subjects }}
{{- $acts := or (include "midwatch.workloadActions" .root | fromYaml).subjects (include "midwatch.sessionCluster" .root) }}
automountServiceAccountToken: {{ or (eq .component "operator") (and $reads (has .component (list "monitor" "agents")) | not | not) (and $acts (eq .component "server") | not | not) }}
enableServiceLinks: false
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Replicas are spread over nodes and zones as far as that goes, or as the values say. */}}
{{- define "midwatch.spread" -}}
topologySpreadConstraints:
  {{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "midwatch.selector" $ | nindent 8 }}
  {{- end }}
  {{- end }}
{{- end -}}

{{/* Drains take so many replicas at once: (dict "root" $ "component" "agents" "maxUnavailable" 1). */}}
{{- define "midwatch.disruptionBudget" -}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "midwatch.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "midwatch.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ .maxUnavailable }}
  # One that cannot reach the database or the store does not keep a node from being drained.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "midwatch.selector" . | nindent 6 }}
{{- end -}}

{{- define "midwatch.containerBasics" -}}
image: {{ include "midwatch.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- define "midwatch.databaseVariable" -}}
- name: MIDWATCH_DATABASE
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- end -}}

{{/* The variables of monitor, agents and server. */}}
{{- define "midwatch.daemonVariables" -}}
- name: MIDWATCH_CONFIG
  value: /etc/midwatch/midwatch.yaml
{{ include "midwatch.databaseVariable" .Values.database.secret }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Brings the schema up to date; the database lets one do it at a time. */}}
{{- define "midwatch.upgradeContainer" -}}
- name: database-upgrade
  {{- include "midwatch.containerBasics" .root | nindent 2 }}
  args: [db, upgrade]
  env:
    {{- include "midwatch.databaseVariable" .secret | nindent 4 }}
  resources:
    requests: {cpu: 50m, memory: 128Mi}
    limits: {memory: 256Mi}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* The pod of monitor, agents or server, from `containers` on. */}}
{{- define "midwatch.daemon" -}}
{{- $mirrors := and (ne .command "serve") (dig "runbooks" "repositories" list .root.Values.settings) -}}
{{- if eq .root.Values.database.upgrade.mode "init" }}
initContainers:
  {{- include "midwatch.upgradeContainer" (dict "root" .root "secret" .root.Values.database.secret) | nindent 2 }}
{{- end }}
containers:
  - name: {{ .command }}
    {{- include "midwatch.containerBasics" .root | nindent 4 }}
    args: [{{ .command }}]
    env:
      {{- include "midwatch.daemonVariables" .root | nindent 6 }}
      {{- if and .key .root.Values.anthropic.secret.name }}
      - name: MIDWATCH_ANTHROPIC__API_KEY_FILE
        value: /run/midwatch/anthropic/api-key
      {{- end }}
      {{- if and .key .root.Values.anthropic.baseUrl }}
      - name: ANTHROPIC_BASE_URL
        value: {{ .root.Values.anthropic.baseUrl | quote }}
      {{- end }}
      {{- if $mirrors }}
      - {name: XDG_CACHE_HOME, value: /var/cache}
      {{- end }}
    {{- with .root.Values.extraEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    ports:
      - {name: http, containerPort: 8080, protocol: TCP}
      {{- if eq .command "serve" }}
      - {name: web, containerPort: 8470, protocol: TCP}
      {{- end }}
    startupProbe:
      httpGet: {path: /healthz, port: http}
      periodSeconds: 5
      failureThreshold: 24
    # Fails when a loop no longer comes round, however little it gets done.
    livenessProbe:
      httpGet: {path: /healthz, port: http}
      periodSeconds: 20
      timeoutSeconds: 10
      failureThreshold: 3
    # Only told of, never a reason for a restart: a database that is down is not mended by one.
    readinessProbe:
      {{- if eq .command "serve" }}
      httpGet: {path: /readyz, port: web}
      periodSeconds: 10
      timeoutSeconds: 5
      {{- else }}
      exec:
        command: [midwatch, db, status]
      periodSeconds: {{ .values.readinessPeriodSeconds }}
      timeoutSeconds: 15
      {{- end }}
      failureThreshold: 2
    resources:
      {{- toYaml .values.resources | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: settings, mountPath: /etc/midwatch, readOnly: true}
      {{- if and .key .root.Values.anthropic.secret.name }}
      - {name: anthropic, mountPath: /run/midwatch/anthropic, readOnly: true}
      {{- end }}
      {{- if $mirrors }}
      - {name: cache, mountPath: /var/cache}
      {{- end }}
      {{- with .root.Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: 256Mi}
  - name: settings
    configMap:
      name: {{ include "midwatch.fullname" .root }}-daemons
  {{- if $mirrors }}
  # The mirrors of the repositories with runbooks.
  - name: cache
    emptyDir: {sizeLimit: 5Gi}
  {{- end }}
  {{- if and .key .root.Values.anthropic.secret.name }}
  - name: anthropic
    secret:
      secretName: {{ .root.Values.anthropic.secret.name }}
      defaultMode: 0440
      items:
        - {key: {{ .root.Values.anthropic.secret.key }}, path: api-key}
  {{- end }}
  {{- with .root.Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
