{{/* midwatch.yaml of each kind of pod: what stands in `settings`, and what the chart knows. Each gets only its
groups: a subject's ${PASSWORD} would otherwise have to be in the environment of the operator as well. */}}

{{- define "midwatch.settings.daemons" -}}
{{- $known := dict "log" (dict "format" "json") -}}
{{- $own := dict "metrics" (dict "host" "0.0.0.0" "port" 8080) -}}
{{- if .Values.server.enabled -}}
{{- $_ := set $own "server" (dict "listen" "0.0.0.0:8470") -}}
{{- end -}}
{{- mergeOverwrite $known (omit .Values.settings "operator" "content" "schedules" | deepCopy) $own | toYaml -}}
{{- end -}}

{{- define "midwatch.settings.operator" -}}
{{- $url := include "midwatch.contentUrl" . -}}
{{- $operator := dict "image" (include "midwatch.image" .) "image_pull_policy" .Values.image.pullPolicy -}}
{{- $_ := set $operator "storage" (ternary "ephemeral" "claim" (ne $url "")) -}}
{{- with .Values.imagePullSecrets -}}
{{- $_ := set $operator "image_pull_secrets" . -}}
{{- end -}}
{{- if .Values.anthropic.secret.name -}}
{{- $_ := set $operator "api_key_secret" .Values.anthropic.secret -}}
{{- end -}}
{{- with .Values.anthropic.baseUrl -}}
{{- $_ := set $operator "base_url" . -}}
{{- end -}}
{{- /* A session's pod has no file of settings: it gets `sessions` as variables. */ -}}
{{- $variables := dict -}}
{{- range $name, $value := .Values.settings.sessions -}}
{{- $text := ternary $value (toJson $value) (kindIs "string" $value) -}}
{{- $_ := set $variables (printf "MIDWATCH_SESSIONS__%s" (upper $name)) $text -}}
{{- end -}}
{{- if $variables -}}
{{- $_ := set $operator "variables" $variables -}}
{{- end -}}
{{- $own := dict "namespaces" .Values.operator.namespaces "host" "0.0.0.0" "port" 8080 -}}
{{- if $url -}}
{{- $_ := set $own "content_url" $url -}}
{{- $_ := set $own "content_key_file" "/run/midwatch/content/key" -}}
{{- end -}}
{{- $operator = mergeOverwrite $operator (default dict .Values.settings.operator | deepCopy) $own -}}
{{- $known := dict "log" (dict "format" "json") -}}
{{- mergeOverwrite $known (pick .Values.settings "log" | deepCopy) (dict "operator" $operator) | toYaml -}}
{{- end -}}

{{- define "midwatch.settings.content" -}}
{{- $own := dict "host" "0.0.0.0" "port" 8080 "key_file" "/run/midwatch/content/key" -}}
{{- if .Values.content.objectStore.url -}}
{{- $_ := set $own "url" .Values.content.objectStore.url -}}
{{- else -}}
{{- $_ := set $own "root" "/var/lib/midwatch" -}}
{{- end -}}
{{- $content := mergeOverwrite (default dict .Values.settings.content | deepCopy) $own -}}
{{- $known := dict "log" (dict "format" "json") -}}
{{- mergeOverwrite $known (pick .Values.settings "log" | deepCopy) (dict "content" $content) | toYaml -}}
{{- end -}}

{{/* What belongs to other values must not stand in `settings` as well. */}}
{{- define "midwatch.checkSettings" -}}
{{- $belongs := dict "operator.namespaces" "operator.namespaces" "operator.host" "" "operator.port" "" "operator.content_url" "content.url" "operator.content_key_file" "content.keySecret" "operator.kubeconfig" "" "operator.context" "" "anthropic.api_key_file" "anthropic.secret" "content.root" "content.persistence" "content.url" "content.objectStore.url" "content.host" "" "content.port" "" "content.key_file" "content.keySecret" "metrics.host" "" "metrics.port" "" "server.listen" "server.enabled" -}}
{{- range $path, $instead := $belongs -}}
{{- $parts := splitList "." $path -}}
{{- if hasKey (default dict (get $.Values.settings (first $parts))) (last $parts) -}}
{{- fail (printf "settings.%s is written by the chart%s" $path (ternary (printf "; set %s instead" $instead) "; leave it out" (ne $instead ""))) -}}
{{- end -}}
{{- end -}}
{{- if hasKey .Values.settings "database" -}}
{{- fail "settings.database would put a password into a ConfigMap; name a secret in database.secret instead" -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if has .name (list "MIDWATCH_CONFIG" "MIDWATCH_DATABASE" "MIDWATCH_ANTHROPIC__API_KEY_FILE") -}}
{{- fail (printf "extraEnv: %s is written by the chart; the database is PostgreSQL, by a secret in database.secret" .name) -}}
{{- end -}}
{{- end -}}
{{- with .Values.settings.schedules -}}
{{- if not $.Values.operator.enabled -}}
{{- fail "settings.schedules: the operator runs their sessions; set operator.enabled" -}}
{{- end -}}
{{- $namespace := include "midwatch.schedulesNamespace" $ -}}
{{- if and $.Values.operator.namespaces (not (has $namespace $.Values.operator.namespaces)) -}}
{{- fail (printf "schedules.namespace: the operator runs no sessions in %s; add it to operator.namespaces" $namespace) -}}
{{- end -}}
{{- $names := list -}}
{{- range $number, $one := . -}}
{{- if has $one.name $names -}}
{{- fail (printf "settings.schedules[%d].name: another one has it" $number) -}}
{{- end -}}
{{- $names = append $names $one.name -}}
{{- if regexMatch "\\$\\{[A-Za-z_]" (toJson $one) -}}
{{- fail (printf "settings.schedules[%d]: a CronJob has no variables; write the value instead of ${…}" $number) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $namespace := include "midwatch.sessionCluster" . -}}
{{- if and $namespace .Values.operator.enabled .Values.operator.namespaces (not (has $namespace .Values.operator.namespaces)) -}}
{{- fail (printf "settings.server.session_cluster.namespace: the operator runs no sessions in %s; add it to operator.namespaces" $namespace) -}}
{{- end -}}
{{- $acts := or (include "midwatch.workloadActions" . | fromYaml).subjects $namespace -}}
{{- $server := include "midwatch.account" (dict "root" . "component" "server" "values" .Values.server) -}}
{{- range $component := list "monitor" "agents" -}}
{{- $values := get $.Values $component -}}
{{- if and $acts $values.enabled (eq $server (include "midwatch.account" (dict "root" $ "component" $component "values" $values))) -}}
{{- fail (printf "server and %s have one service account, and only the server may change workloads or create sessions: give each its own" $component) -}}
{{- end -}}
{{- end -}}
{{- /* A session that the server starts runs in its pod: without a sandbox, Bash could read the token of its account. */ -}}
{{- $sessions := default dict .Values.settings.sessions -}}
{{- $bash := eq (default "" $sessions.permission_mode) "bypassPermissions" -}}
{{- range $sessions.allowed_tools -}}
{{- $bash = or $bash (hasPrefix "Bash" .) -}}
{{- end -}}
{{- if and $bash (not (has (default "" $sessions.sandbox | toString) (list "on" "true"))) $acts -}}
{{- fail "settings.sessions allows Bash without a sandbox in the server's pod, whose account may change workloads or create sessions; set sessions.sandbox to on, or give actions and server.session_cluster a kubeconfig that is not in this pod" -}}
{{- end -}}
{{- if and .Values.monitor.enabled (not .Values.settings.subjects) -}}
{{- fail "monitor.enabled: there is nothing to watch; name systems in settings.subjects" -}}
{{- end -}}
{{- end -}}
