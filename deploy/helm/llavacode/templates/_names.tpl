{{/* Names, labels and images. */}}

{{- define "llavacode.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What runs, as a JSON list of role and candidate: whether it serves the candidate of a rollout, and not the bundle. */}}
{{- define "llavacode.parts" -}}
{{- $v := .Values }}
{{- $parts := list (dict "role" "gateway" "candidate" false) }}
{{- range $role := list "prefill" "decode" "colocated" "indexer" }}
{{- if (get $v $role).enabled }}{{ $parts = append $parts (dict "role" $role "candidate" false) }}{{ end }}
{{- end }}
{{- if $v.candidate.enabled }}
{{- range $role := list "prefill" "decode" "colocated" "indexer" }}
{{- if (get $v $role).enabled }}{{ $parts = append $parts (dict "role" $role "candidate" true) }}{{ end }}
{{- end }}
{{- end }}
{{- toJson $parts }}
{{- end }}

{{/* What a part is called. Takes role and candidate. */}}
{{- define "llavacode.component" -}}
{{- if .candidate }}candidate-{{ end }}{{ .role }}
{{- end }}

{{/* The values of the bundle that a part serves, and of its sizes, as JSON. Take root and candidate. */}}
{{- define "llavacode.bundleOf" -}}
{{- if .candidate }}{{ toJson .root.Values.candidate.bundle }}{{ else }}{{ toJson .root.Values.bundle }}{{ end }}
{{- end }}
{{- define "llavacode.modelOf" -}}
{{- if .candidate }}{{ toJson .root.Values.candidate.model }}{{ else }}{{ toJson .root.Values.model }}{{ end }}
{{- end }}

{{/* Labels by which the pods of one part are selected; they never change. Takes root, role and candidate. */}}
{{- define "llavacode.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ include "llavacode.component" . }}
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

{{/* The folder of a part's bundle in its containers. Takes root and candidate. */}}
{{- define "llavacode.bundlePath" -}}
{{- printf "/bundle/%s" (include "llavacode.bundleOf" . | fromJson).path | trimSuffix "/" }}
{{- end }}
