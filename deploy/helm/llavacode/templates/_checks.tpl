{{/* What a schema cannot check: values that do not go together. Rendered once, by the service account. */}}

{{- define "llavacode.checks" -}}
{{- $v := .Values }}
{{- if not (or $v.rpc.secretName $v.rpc.mtls.enabled) }}
{{- fail (print "nothing proves that services belong together: set rpc.secretName to a Secret (kubectl create secret "
  "generic llavacode-rpc --from-literal=secret=$(openssl rand -hex 32)), or rpc.mtls.enabled") }}
{{- end }}
{{- if not (or $v.apiKeys.secretName $v.apiKeys.insecure) }}
{{- fail (print "everybody could use the gateway: set apiKeys.secretName to a Secret with API keys, or apiKeys.insecure "
  "to true where something in front of the gateway keeps others out") }}
{{- end }}
{{- $monitored := or $v.podMonitor.tokenSecretName $v.podMonitor.keySecretName }}
{{- if and $v.podMonitor.enabled $v.apiKeys.secretName (not $monitored) }}
{{- fail (print "the gateway's metrics need a token: set podMonitor.tokenSecretName to a Secret with one (kubectl create "
  "secret generic llavacode-metrics --from-literal=token=$(openssl rand -hex 32))") }}
{{- end }}
{{- if not (or (and $v.prefill.enabled $v.decode.enabled) $v.colocated.enabled) }}
{{- fail "no worker computes prompts, or none decodes: enable prefill and decode, or colocated" }}
{{- end }}
{{- if and $v.store.url $v.store.secretName }}
{{- fail "store.url and store.secretName name two stores: leave one empty" }}
{{- end }}
{{- if eq $v.redis.enabled (or (ne $v.store.url "") (ne $v.store.secretName "")) }}
{{- fail "one store is needed: either redis.enabled, or store.url or store.secretName" }}
{{- end }}
{{- $drainMs := int64 $v.shutdown.drainTimeoutMs }}
{{- $requestMs := int64 $v.gateway.requestTimeoutMs }}
{{- if le (mul $drainMs 9) (mul $requestMs 10) }}
{{- fail (printf (print "shutdown.drainTimeoutMs %d would cut off running requests: nine tenths of it must be longer "
  "than gateway.requestTimeoutMs %d") $drainMs $requestMs) }}
{{- end }}
{{- range $role := list "gateway" "prefill" "decode" "colocated" "indexer" }}
{{- $pool := get $v $role }}
{{- if and (eq (int $pool.maxSurge) 0) (eq (int $pool.maxUnavailable) 0) }}
{{- fail (printf "%s.maxSurge and %s.maxUnavailable are both 0: no pod could be replaced" $role $role) }}
{{- end }}
{{- end }}
{{- if and (eq $v.gpu.class "cuda12") (not (has $v.model.precision (list "fp16" "int8-fp16" "int4-fp16"))) }}
{{- fail (printf (print "gpu.class cuda12 does not compute model.precision %s: its attention takes 16 bits only, so take "
  "fp16, int8-fp16 or int4-fp16") $v.model.precision) }}
{{- end }}
{{- range $which, $bundle := dict "bundle" $v.bundle "candidate.bundle" $v.candidate.bundle }}
{{- if or (eq $which "bundle") $v.candidate.enabled }}
{{- if and (eq $bundle.source "pvc") (not $bundle.pvc.claimName) }}
{{- fail (printf "%s.source pvc needs %s.pvc.claimName" $which $which) }}
{{- end }}
{{- if and (eq $bundle.source "image") (not $bundle.image.reference) }}
{{- fail (printf "%s.source image needs %s.image.reference" $which $which) }}
{{- end }}
{{- if and (eq $bundle.source "init") (not $bundle.path) }}
{{- fail (printf "%s.source init needs %s.path: a bundle is renamed into place, and a volume's root cannot be" $which $which) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (eq $v.autoscaling.kind "keda") (not $v.autoscaling.prometheusUrl) }}
{{- fail "autoscaling.kind keda needs autoscaling.prometheusUrl" }}
{{- end }}
{{- if and $v.inferencePool.enabled (not $v.inferencePool.endpointPicker.name) }}
{{- fail "inferencePool.enabled needs inferencePool.endpointPicker.name, the Service of the endpoint picker" }}
{{- end }}
{{- end }}
