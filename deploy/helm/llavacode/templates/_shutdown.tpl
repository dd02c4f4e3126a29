{{/* How a pod stops. Takes root and role. */}}

{{- define "llavacode.preStopSeconds" -}}
{{- $s := .root.Values.shutdown }}
{{- ternary $s.gatewayPreStopSeconds $s.workerPreStopSeconds (eq .role "gateway") }}
{{- end }}

{{/* preStop, drain and margin: Kubernetes counts the grace period from the beginning of preStop. */}}
{{- define "llavacode.graceSeconds" -}}
{{- $s := .root.Values.shutdown }}
{{- $drain := div (add (int64 $s.drainTimeoutMs) 999) 1000 }}
{{- add (include "llavacode.preStopSeconds" . | int64) $drain (int64 $s.marginSeconds) }}
{{- end }}
