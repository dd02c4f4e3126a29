{{/*
What pools are scaled by. Prompts wait in gateways until a worker has room, so those of gateways count for whoever
computes prompts. Sequences beyond the slots wait in decode workers, half as many as there are slots at most.
*/}}

{{/* Matchers of the series of some roles (a regular expression) of this release. Takes root and roles. */}}
{{- define "llavacode.series" -}}
{{- $release := .root.Release }}
{{- printf "namespace=%q,app_kubernetes_io_instance=%q," $release.Namespace $release.Name }}
{{- printf "app_kubernetes_io_component=~%q" .roles }}
{{- end }}

{{/*
JSON list of what a role is scaled by: name and type of the metric that prometheus-adapter serves, the query that KEDA
asks, and the share of one pod as a quantity and as a number. Takes root and role.
*/}}
{{- define "llavacode.demand" -}}
{{- $pool := get .root.Values.autoscaling .role }}
{{- $own := include "llavacode.series" (dict "root" .root "roles" .role) }}
{{- $demand := list }}
{{- if hasKey $pool "waitingTokens" }}
{{- $all := include "llavacode.series" (dict "root" .root "roles" "gateway|prefill|colocated") }}
{{- $each := print (int64 $pool.waitingTokens) }}
{{- $demand = append $demand (dict
  "type" "External"
  "name" "llavacode_waiting_tokens"
  "query" (printf "sum(llavacode:waiting_tokens{%s})" $all)
  "quantity" $each
  "threshold" $each) }}
{{- end }}
{{- if hasKey $pool "waitingRequests" }}
{{- $each := print (int64 $pool.waitingRequests) }}
{{- $demand = append $demand (dict
  "type" "Pods"
  "name" "vllm_num_requests_waiting"
  "query" (printf "sum(vllm:num_requests_waiting{%s})" $own)
  "quantity" $each
  "threshold" $each) }}
{{- end }}
{{- if hasKey $pool "slotsPercent" }}
{{- $demand = append $demand (dict
  "type" "Pods"
  "name" "vllm_kv_cache_usage_perc"
  "query" (printf "sum(vllm:kv_cache_usage_perc{%s})" $own)
  "quantity" (printf "%dm" (mul (int64 $pool.slotsPercent) 10))
  "threshold" (printf "%.2f" (divf $pool.slotsPercent 100))) }}
{{- end }}
{{- toJson $demand }}
{{- end }}
