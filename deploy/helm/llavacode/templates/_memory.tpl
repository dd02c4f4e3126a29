{{/*
Memory of a pod from the sizes of the bundle, as the engine adds it up at its start: weights, KV caches of all slots and
the logits of the largest step; the rest is the process's own. A worker on a GPU needs as much of the machine's memory
once, for the check at its start.
*/}}

{{- define "llavacode.mebibytes" -}}
{{- printf "%dMi" (div (add (int64 .) 1048575) 1048576) }}
{{- end }}

{{/* Takes root, role and candidate. A gateway has the encoder of a rollout's candidate as well, and a cache of its indexes. */}}
{{- define "llavacode.memory" -}}
{{- $v := .root.Values }}
{{- $model := include "llavacode.modelOf" . | fromJson }}
{{- $pool := get $v .role }}
{{- $bytes := mul (int64 $pool.overheadMiB) 1048576 }}
{{- if has .role (list "prefill" "decode" "colocated") }}
{{- $weights := int64 (ternary $model.promptWeightsBytes $model.weightsBytes (eq .role "prefill")) }}
{{- $slots := int64 $pool.slots }}
{{- if include "llavacode.onGpu" . }}{{ $slots = add $slots 1 }}{{ end }}
{{- $kv := mul $slots (int64 $model.capacity) (int64 $model.kvBytesPerToken) }}
{{- $bytes = add $bytes $weights $kv (mul $slots (int64 $model.vocabulary) 4) }}
{{- else }}
{{- $bytes = add $bytes (int64 $model.contextWeightsBytes) }}
{{- end }}
{{- if eq .role "gateway" }}{{ $bytes = add $bytes (int64 $pool.indexCacheBytes) (int64 $pool.rowCacheBytes) }}
{{- if $v.candidate.enabled }}{{ $bytes = add $bytes (int64 $v.candidate.model.contextWeightsBytes) (int64 $pool.indexCacheBytes) }}{{ end }}
{{- end }}
{{- include "llavacode.mebibytes" $bytes }}
{{- end }}

{{/* Requests and limits. Workers get whole cores of their own; a gateway may take more than it asks for. */}}
{{- define "llavacode.resources" -}}
{{- $pool := get .root.Values .role }}
{{- $memory := include "llavacode.memory" . -}}
requests:
  cpu: {{ $pool.cpu | quote }}
  memory: {{ $memory }}
limits:
  {{- if ne .role "gateway" }}
  cpu: {{ $pool.cpu | quote }}
  {{- end }}
  memory: {{ $memory }}
  {{- if include "llavacode.onGpu" . }}
  {{ .root.Values.gpu.resource }}: {{ .root.Values.gpu.count }}
  {{- end }}
{{- end }}
