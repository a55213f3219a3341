{{- define "labels" -}}
app.kubernetes.io/part-of: lora-gateway
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Seconds from a pod's end to its kill: before it is asked to stop, while it stops, and to spare. */}}
{{- define "engine.grace" -}}
{{ add .Values.engine.preStopSeconds .Values.engine.shutdownSeconds 20 }}
{{- end }}
