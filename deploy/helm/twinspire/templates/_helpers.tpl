{{- define "twinspire.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "twinspire.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Labels that never change; called with (dict "root" $ "component" NAME). */}}
{{- define "twinspire.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "twinspire.labels" -}}
{{ include "twinspire.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "twinspire.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "twinspire.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The same on other nodes, if there are some. */}}
{{- define "twinspire.placement" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "twinspire.selector" . | nindent 8 }}
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
{{- end }}

{{- define "twinspire.keysSecret" -}}
{{ .Values.gateway.keys.existingSecret | default (printf "%s-keys" (include "twinspire.fullname" .)) }}
{{- end }}

{{/* Arguments that name the servers: each pod by its own name, also those that autoscaling may add. */}}
{{- define "twinspire.servers" -}}
{{- $name := include "twinspire.fullname" . }}
{{- if .Values.triton.enabled }}
{{- $count := .Values.triton.replicas }}
{{- if .Values.triton.autoscaling.enabled }}{{ $count = .Values.triton.autoscaling.maxReplicas }}{{ end }}
{{- range $number := until (int $count) }}
- --server={{ $name }}-triton-{{ $number }}.{{ $name }}-triton:8001
{{- end }}
{{- end }}
{{- range .Values.gateway.servers }}
- --server={{ . }}
{{- end }}
{{- end }}
