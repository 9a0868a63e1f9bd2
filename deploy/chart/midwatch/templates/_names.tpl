{{- define "midwatch.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* 40 characters at most, so that the longest suffix still fits into a label. */}}
{{- define "midwatch.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "midwatch.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What never changes of a component: (dict "root" $ "component" "monitor"). */}}
{{- define "midwatch.selector" -}}
app.kubernetes.io/name: {{ include "midwatch.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "midwatch.labels" -}}
{{ include "midwatch.selector" . }}
app.kubernetes.io/part-of: midwatch
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end -}}

{{/* Cluster-wide names carry the namespace: two releases of one name may be in two of them. */}}
{{- define "midwatch.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "midwatch.fullname" .) -}}
{{- end -}}

{{/* (dict "root" $ "component" "monitor" "values" .Values.monitor) */}}
{{- define "midwatch.account" -}}
{{- $own := printf "%s-%s" (include "midwatch.fullname" .root) .component -}}
{{- default (ternary $own "default" .values.serviceAccount.create) .values.serviceAccount.name -}}
{{- end -}}

{{- define "midwatch.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "midwatch.contentClaim" -}}
{{- default (printf "%s-content" (include "midwatch.fullname" .)) .Values.content.persistence.existingClaim -}}
{{- end -}}

{{/* Where the content proxy is; empty without one. */}}
{{- define "midwatch.contentUrl" -}}
{{- if .Values.content.enabled -}}
{{- printf "http://%s-content.%s.svc:8080" (include "midwatch.fullname" .) .Release.Namespace -}}
{{- else -}}
{{- .Values.content.url -}}
{{- end -}}
{{- end -}}

{{/* Where the CronJobs of settings.schedules and their sessions are. */}}
{{- define "midwatch.schedulesNamespace" -}}
{{- .Values.schedules.namespace | default (first .Values.operator.namespaces) | default .Release.Namespace -}}
{{- end -}}

{{/* The seconds of a duration, such as 600, 45m or 1h30m, as a whole number. */}}
{{- define "midwatch.seconds" -}}
{{- $units := dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 "w" 604800.0 -}}
{{- $seconds := 0.0 -}}
{{- range regexFindAll "[0-9]+(\\.[0-9]+)? *[a-z]*" (toString . | lower) -1 -}}
{{- $unit := default "s" (regexFind "[a-z]+" .) -}}
{{- $seconds = addf $seconds (mulf (regexFind "[0-9.]+" . | float64) (get $units $unit)) -}}
{{- end -}}
{{- round $seconds 0 | int64 -}}
{{- end -}}

{{/* Names of secrets as a pod has them. */}}
{{- define "midwatch.pullSecrets" -}}
{{- $found := list -}}
{{- range . -}}
{{- $found = append $found (dict "name" .) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}
