{{/* The command lines of services, and the variables and files that they need. Takes root, role and candidate. */}}

{{- define "llavacode.workerList" -}}
{{- $name := include "llavacode.fullname" .root }}
{{- $list := list }}
{{- range .roles }}
{{- if (get $.root.Values .).enabled }}
{{- $list = append $list (printf "dns:%s-%s:9000" $name .) }}
{{- if $.root.Values.candidate.enabled }}{{ $list = append $list (printf "dns:%s-candidate-%s:9000" $name .) }}{{ end }}
{{- end }}
{{- end }}
{{- join "," $list }}
{{- end }}

{{- define "llavacode.arguments" -}}
{{- $v := .root.Values }}
{{- $name := include "llavacode.fullname" .root }}
{{- $pool := get $v .role -}}
- {{ .role }}
{{- if $v.settings }}
- --config=/etc/llavacode/settings/llavacode.yaml
{{- end }}
- --host=0.0.0.0
- --port={{ ternary 8000 9000 (eq .role "gateway") }}
- --model={{ include "llavacode.bundlePath" . }}
- --threads={{ $pool.cpu }}
- --drain-timeout-ms={{ int64 $v.shutdown.drainTimeoutMs }}
{{- if $v.rpc.secretName }}
- --rpc-secret-file=/etc/llavacode/rpc/secret
{{- end }}
{{- if $v.rpc.mtls.enabled }}
- --rpc-cert=/etc/llavacode/rpc-tls/tls.crt
- --rpc-key=/etc/llavacode/rpc-tls/tls.key
- --rpc-ca=/etc/llavacode/rpc-tls/ca.crt
{{- end }}
{{- if eq .role "gateway" }}
- --prefill-workers={{ include "llavacode.workerList" (dict "root" .root "roles" (list "prefill" "colocated")) }}
- --decode-workers={{ include "llavacode.workerList" (dict "root" .root "roles" (list "decode" "colocated")) }}
{{- if $v.indexer.enabled }}
- --indexer={{ $name }}-indexer:9000
{{- end }}
{{- if $v.candidate.enabled }}
- --rollouts=true
{{- end }}
- --request-timeout-ms={{ int64 $v.gateway.requestTimeoutMs }}
- --index-cache-bytes={{ int64 $v.gateway.indexCacheBytes }}
- --row-cache-bytes={{ int64 $v.gateway.rowCacheBytes }}
{{- if $v.apiKeys.secretName }}
- --api-keys-file=/etc/llavacode/api-keys/keys.json
{{- else }}
- --insecure-listen=true
{{- end }}
{{- if $v.podMonitor.tokenSecretName }}
- --metrics-token-file=/etc/llavacode/metrics/token
{{- end }}
{{- if $v.gateway.tls.secretName }}
- --tls-cert=/etc/llavacode/tls/tls.crt
- --tls-key=/etc/llavacode/tls/tls.key
{{- end }}
{{- else }}
- --metrics-host=0.0.0.0
- --metrics-port=9090
- --provider={{ include "llavacode.provider" . }}
{{- if ne .role "indexer" }}
- --prepacked=/cache/prepacked
- --slots={{ $pool.slots }}
- --capacity={{ int64 (include "llavacode.modelOf" . | fromJson).capacity }}
{{- if include "llavacode.kvOnDisk" . }}
- --kv-disk-dir=/kv/prompts
- --kv-disk-bytes={{ int64 $v.kvDisk.bytes }}
{{- end }}
{{- if and (include "llavacode.onGpu" .) (gt (int64 $v.gpu.memoryBytes) 0) }}
- --device-memory={{ int64 $v.gpu.memoryBytes }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Whether a role computes prompts, and keeps their KV on disk. */}}
{{- define "llavacode.kvOnDisk" -}}
{{- if and (has .role (list "prefill" "colocated")) (gt (int64 .root.Values.kvDisk.bytes) 0) }}true{{ end }}
{{- end }}

{{- define "llavacode.provider" -}}
{{- if include "llavacode.onGpu" . }}
{{- get (dict "webgpu" "webgpu" "cuda12" "cuda") .root.Values.gpu.class }}
{{- else }}
{{- "cpu" }}
{{- end }}
{{- end }}

{{- define "llavacode.environment" -}}
{{- $v := .root.Values -}}
# Drivers keep compiled kernels there, and uploads are unpacked in the other.
- name: XDG_CACHE_HOME
  value: /cache
- name: TMPDIR
  value: /tmp
{{- if has .role (list "gateway" "indexer") }}
- name: LLAVACODE_STORE
  {{- if $v.store.secretName }}
  valueFrom:
    secretKeyRef:
      name: {{ $v.store.secretName }}
      key: {{ $v.store.secretKey }}
  {{- else }}
  value: {{ $v.store.url | default (printf "redis://%s-redis:6379" (include "llavacode.fullname" .root)) | quote }}
  {{- end }}
{{- end }}
{{- with $v.otel.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- with $v.otel.sampler }}
- name: OTEL_TRACES_SAMPLER
  value: {{ . | quote }}
{{- end }}
{{- with $v.otel.samplerArgument }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "llavacode.mounts" -}}
{{- $v := .root.Values -}}
- name: bundle
  mountPath: /bundle
  readOnly: true
{{- if and (eq .role "gateway") $v.candidate.enabled }}
- name: candidate
  mountPath: /candidate
  readOnly: true
{{- end }}
- name: cache
  mountPath: /cache
- name: tmp
  mountPath: /tmp
{{- if include "llavacode.kvOnDisk" . }}
- name: kv
  mountPath: /kv
{{- end }}
{{- if $v.settings }}
- name: settings
  mountPath: /etc/llavacode/settings
  readOnly: true
{{- end }}
{{- if $v.rpc.secretName }}
- name: rpc
  mountPath: /etc/llavacode/rpc
  readOnly: true
{{- end }}
{{- if $v.rpc.mtls.enabled }}
- name: rpc-tls
  mountPath: /etc/llavacode/rpc-tls
  readOnly: true
{{- end }}
{{- if eq .role "gateway" }}
{{- if $v.apiKeys.secretName }}
- name: api-keys
  mountPath: /etc/llavacode/api-keys
  readOnly: true
{{- end }}
{{- if $v.podMonitor.tokenSecretName }}
- name: metrics
  mountPath: /etc/llavacode/metrics
  readOnly: true
{{- end }}
{{- if $v.gateway.tls.secretName }}
- name: tls
  mountPath: /etc/llavacode/tls
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{/* The group of the pod may read secrets, others may not: the services refuse a secret that all can read. */}}
{{- define "llavacode.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 288 # 0440
    {{- with .items }}
    items:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}

{{/* Takes the name of the volume, and the values of a bundle. */}}
{{- define "llavacode.bundleVolume" -}}
- name: {{ .name }}
  {{- if eq .bundle.source "pvc" }}
  persistentVolumeClaim:
    claimName: {{ .bundle.pvc.claimName }}
    readOnly: true
  {{- else if eq .bundle.source "image" }}
  image:
    reference: {{ .bundle.image.reference | quote }}
    pullPolicy: {{ .bundle.image.pullPolicy }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .bundle.init.sizeLimit }}
  {{- end }}
{{- end }}

{{- define "llavacode.volumes" -}}
{{- $v := .root.Values -}}
{{ include "llavacode.bundleVolume" (dict "name" "bundle" "bundle" (include "llavacode.bundleOf" . | fromJson)) }}
{{- if and (eq .role "gateway") $v.candidate.enabled }}
{{ include "llavacode.bundleVolume" (dict "name" "candidate" "bundle" $v.candidate.bundle) }}
{{- end }}
- name: cache
  {{- if and $v.cache.claimName (ne .role "gateway") }}
  persistentVolumeClaim:
    claimName: {{ $v.cache.claimName }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ $v.cache.sizeLimit }}
  {{- end }}
- name: tmp
  emptyDir: {}
{{- if include "llavacode.kvOnDisk" . }}
- name: kv
  {{- if $v.kvDisk.claimName }}
  persistentVolumeClaim:
    claimName: {{ $v.kvDisk.claimName }}
  {{- else }}
  emptyDir:
    # A sixteenth more, for files that are being written and headers: above its limit the pod is evicted.
    sizeLimit: {{ add (int64 $v.kvDisk.bytes) (div (int64 $v.kvDisk.bytes) 16) (mul 64 1048576) }}
  {{- end }}
{{- end }}
{{- if $v.settings }}
- name: settings
  configMap:
    name: {{ include "llavacode.fullname" .root }}-settings
{{- end }}
{{- if $v.rpc.secretName }}
{{- $items := list (dict "key" $v.rpc.secretKey "path" "secret") }}
{{ include "llavacode.secretVolume" (dict "name" "rpc" "secret" $v.rpc.secretName "items" $items) }}
{{- end }}
{{- if $v.rpc.mtls.enabled }}
{{ include "llavacode.secretVolume" (dict "name" "rpc-tls" "secret" (include "llavacode.mtlsSecret" .root)) }}
{{- end }}
{{- if eq .role "gateway" }}
{{- if $v.apiKeys.secretName }}
{{- $items := list (dict "key" $v.apiKeys.secretKey "path" "keys.json") }}
{{ include "llavacode.secretVolume" (dict "name" "api-keys" "secret" $v.apiKeys.secretName "items" $items) }}
{{- end }}
{{- if $v.podMonitor.tokenSecretName }}
{{- $items := list (dict "key" $v.podMonitor.tokenSecretKey "path" "token") }}
{{ include "llavacode.secretVolume" (dict "name" "metrics" "secret" $v.podMonitor.tokenSecretName "items" $items) }}
{{- end }}
{{- if $v.gateway.tls.secretName }}
{{ include "llavacode.secretVolume" (dict "name" "tls" "secret" $v.gateway.tls.secretName) }}
{{- end }}
{{- end }}
{{- end }}
