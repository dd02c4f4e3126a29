{{/* Names, labels and images. */}}

{{- define "llavacode.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels by which pods of one role are selected; they never change. Takes root and role. */}}
{{- define "llavacode.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "llavacode.labels" -}}
{{ include "llavacode.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: llavacode
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* Whether a role computes on a GPU: yes or nothing. Encoders do not compute on CUDA. Takes root and role. */}}
{{- define "llavacode.onGpu" -}}
{{- $class := .root.Values.gpu.class }}
{{- $computing := list "prefill" "decode" "colocated" }}
{{- if eq $class "webgpu" }}{{ $computing = append $computing "indexer" }}{{ end }}
{{- if and (ne $class "none") (has .role $computing) }}yes{{ end }}
{{- end }}

{{- define "llavacode.image" -}}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- if include "llavacode.onGpu" . }}{{ $tag = printf "%s-%s" $tag .root.Values.gpu.class }}{{ end }}
{{- printf "%s:%s" .root.Values.image.repository $tag }}
{{- end }}

{{/* What llm-d and the Endpoint Picker call what a pod does. A gateway answers a whole request. */}}
{{- define "llavacode.llmdRole" -}}
{{- get (dict "gateway" "prefill-decode" "colocated" "prefill-decode" "prefill" "prefill" "decode" "decode") . }}
{{- end }}

{{/* Name of the Secret with the certificates for mutual TLS. */}}
{{- define "llavacode.mtlsSecret" -}}
{{- .Values.rpc.mtls.secretName | default (printf "%s-rpc-tls" (include "llavacode.fullname" .)) }}
{{- end }}

{{/* The folder of the bundle in every container. */}}
{{- define "llavacode.bundlePath" -}}
{{- printf "/bundle/%s" .Values.bundle.path | trimSuffix "/" }}
{{- end }}
