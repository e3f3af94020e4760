{{- define "edge.labels" -}}
app.kubernetes.io/name: airflow-edge-agent
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "edge.all-labels" -}}
{{ include "edge.labels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{/* The name of what belongs to one agent: release and agent. Kubernetes adds to it, and has room for 63 characters. */}}
{{- define "edge.name" -}}
{{- $full := printf "%s-%s" .release .agent -}}
{{- if gt (len $full) 52 -}}
{{- printf "%s-%s" ($full | trunc 43 | trimSuffix "-") (sha256sum $full | trunc 8) -}}
{{- else -}}
{{- $full -}}
{{- end -}}
{{- end }}

{{/* A setting as a variable: tables and lists as JSON, as the agent reads them. */}}
{{- define "edge.variable" -}}
- name: {{ printf "EDGE_AGENT_%s" (upper .name) }}
  value: {{ if or (kindIs "map" .value) (kindIs "slice" .value) }}{{ toJson .value | quote }}{{ else }}{{ toString .value | quote }}{{ end }}
{{- end }}
