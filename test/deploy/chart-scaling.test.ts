/** What scales the pools of the Helm chart: objects that exist, metrics that are measured, and who reads them. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { measuredBy, metrics } from '../../services/lib/process/metrics.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { NAMESPACE, ofKind, RELEASE, type Resource, resourcesOf } from '../support/chart.ts';
import { COMPONENT, matches, type Selector, servicePods } from '../support/chart-pods.ts';
import { metricFacts } from '../support/operations.ts';

interface Target {
  readonly scaleTargetRef: { readonly kind: string; readonly name: string };
}
interface Hpa extends Target {
  readonly minReplicas: number;
  readonly maxReplicas: number;
  readonly metrics: readonly Metric[];
}
interface Metric {
  readonly type: 'Resource' | 'Pods' | 'External';
  readonly resource?: { readonly name: string; readonly target: { readonly averageUtilization: number } };
  readonly pods?: { readonly metric: { readonly name: string }; readonly target: { readonly averageValue: string } };
  readonly external?: {
    readonly metric: { readonly name: string; readonly selector: Selector };
    readonly target: { readonly averageValue: string };
  };
}
interface ScaledObject extends Target {
  readonly minReplicaCount: number;
  readonly maxReplicaCount: number;
  readonly triggers: readonly {
    readonly type: string;
    readonly metadata: { readonly serverAddress: string; readonly query: string; readonly threshold: string };
  }[];
}
interface PodMonitor {
  readonly selector: Selector;
  readonly podTargetLabels: readonly string[];
  readonly podMetricsEndpoints: readonly {
    readonly port: string;
    readonly path: string;
    readonly scheme?: string;
    readonly authorization?: { readonly credentials: { readonly name: string; readonly key: string } };
  }[];
}

/** Services that measure a metric; a colocated worker measures what prefill and decode do. */
function measuring(name: string): string[] {
  const found = Object.values(metrics).find((metric) => metricFacts(metric).name === name);
  expect(found, `${name} is a metric`).toBeDefined();
  const services: string[] = [...measuredBy(found!)];
  return services.includes('prefill') || services.includes('decode') ? [...services, 'colocated'] : services;
}

const scaled = (resources: readonly Resource[]) => [
  ...ofKind<Target>(resources, 'HorizontalPodAutoscaler'),
  ...ofKind<Target>(resources, 'ScaledObject'),
];

describe('autoscaling', () => {
  test.each([
    ['whole', ['gateway', 'prefill', 'decode', 'colocated']],
    ['colocated', ['gateway', 'colocated']],
    ['cuda12', ['gateway', 'prefill', 'decode']],
    ['small', []],
  ] as const)('in %s one object scales each pool, whose Deployment then names no replicas', async (name, roles) => {
    const resources = await resourcesOf(name);
    const targets = scaled(resources).map(({ spec }) => spec.scaleTargetRef.name);
    const pods = servicePods(resources);
    const names = new Map(pods.map(({ role, deployment }) => [deployment.metadata.name, role]));
    expect(targets.map((target) => names.get(target)).toSorted()).toEqual([...roles].toSorted());
    for (const { role, deployment } of pods) {
      expect(deployment.spec.replicas === undefined, role).toBe(roles.some((each) => each === role));
    }
  });

  test('KEDA asks for metrics that the roles measure, by the labels that their series have', async () => {
    const resources = await resourcesOf('whole');
    const asked: Record<string, string[]> = {};
    for (const { metadata, spec } of ofKind<ScaledObject>(resources, 'ScaledObject')) {
      expect(spec.minReplicaCount).toBeLessThan(spec.maxReplicaCount);
      for (const { type, metadata: trigger } of spec.triggers) {
        expect([type, trigger.serverAddress]).toEqual(['prometheus', 'http://prometheus.monitoring:9090']);
        const [, name, labels = ''] = /^sum\(([\w:]+)\{(.*)\}\)$/.exec(trigger.query)!;
        const series = new Map(
          [...labels.matchAll(/(\w+)=(~?)"([^"]*)"/g)].map(([, label, , value]) => [label, value]),
        );
        expect([...series.keys()]).toEqual(['namespace', 'app_kubernetes_io_instance', 'app_kubernetes_io_component']);
        expect([series.get('namespace'), series.get('app_kubernetes_io_instance')]).toEqual([NAMESPACE, RELEASE]);
        for (const role of series.get('app_kubernetes_io_component')!.split('|')) {
          expect(measuring(name!), role).toContain(role);
        }
        asked[metadata.name] = [...(asked[metadata.name] ?? []), `${name} ${trigger.threshold}`];
      }
    }
    expect(asked).toEqual({
      'code-prefill': ['llavacode:waiting_tokens 4000'],
      'code-decode': ['vllm:num_requests_waiting 1', 'vllm:kv_cache_usage_perc 0.80'],
      'code-colocated': ['llavacode:waiting_tokens 4000', 'vllm:kv_cache_usage_perc 0.80'],
    });
  });

  test('an HPA scales by metrics that prometheus-adapter makes of ours, with the rules in deploy/helm', async () => {
    const file = await readFile(join(PACKAGE_ROOT, 'deploy', 'helm', 'prometheus-adapter.yaml'), 'utf8');
    interface Rule {
      readonly seriesQuery: string;
      readonly name: { readonly as: string };
      readonly resources: { readonly overrides: object };
    }
    const { custom, external } = (parse(file) as { rules: Record<'custom' | 'external', Rule[]> }).rules;
    const madeOf = (rules: readonly Rule[], name: string) => {
      const rule = rules.find((each) => each.name.as === name);
      expect(rule, `${name} has a rule`).toBeDefined();
      return { ours: /^[\w:]+/.exec(rule!.seriesQuery)![0], by: Object.keys(rule!.resources.overrides) };
    };
    const used = new Set<string>();
    for (const name of ['colocated', 'cuda12'] as const) {
      for (const { metadata, spec } of ofKind<Hpa>(await resourcesOf(name), 'HorizontalPodAutoscaler')) {
        const role = metadata.name.replace(`${RELEASE}-`, '');
        expect(spec.minReplicas).toBeLessThan(spec.maxReplicas);
        expect(spec.metrics.length).toBeGreaterThan(0);
        for (const { type, pods, external: other, resource } of spec.metrics) {
          if (type === 'Resource') {
            expect([role, resource!.name]).toEqual(['gateway', 'cpu']);
            continue;
          }
          const metric = (pods ?? other)!.metric.name;
          used.add(metric);
          const { ours, by } = madeOf(type === 'Pods' ? custom : external, metric);
          expect(by).toEqual(type === 'Pods' ? ['namespace', 'pod'] : ['namespace']);
          expect(measuring(ours), metadata.name).toContain(role);
          if (other)
            expect(other.metric).toMatchObject({ selector: { matchLabels: { app_kubernetes_io_instance: RELEASE } } });
          expect((pods ?? other)!.target.averageValue).toBe(
            { vllm_kv_cache_usage_perc: '800m', vllm_num_requests_waiting: '1', llavacode_waiting_tokens: '4000' }[
              metric
            ],
          );
        }
      }
    }
    expect([...used].toSorted()).toEqual([...custom, ...external].map((rule) => rule.name.as).toSorted());
  });
});

describe('pod monitors', () => {
  test.each(['whole', 'colocated'] as const)('each role of %s is scraped once, where its metrics are', async (name) => {
    const resources = await resourcesOf(name);
    const pods = servicePods(resources);
    const monitors = ofKind<PodMonitor>(resources, 'PodMonitor');
    const roles = monitors.map(({ spec }) => {
      const found = pods.filter(({ deployment }) => matches(spec.selector, deployment.spec.template.metadata.labels));
      expect(found).toHaveLength(1);
      const [{ role, container, deployment, flags }] = found as [(typeof found)[0]];
      const [{ port, path, scheme, authorization }] = spec.podMetricsEndpoints as [
        PodMonitor['podMetricsEndpoints'][0],
      ];
      expect(path).toBe('/metrics');
      const number = container.ports.find((each) => each.name === port)?.containerPort;
      expect(String(number)).toBe(role === 'gateway' ? flags['port'] : flags['metricsPort']);
      expect(scheme).toBe(flags[role === 'gateway' ? 'tlsCert' : 'rpcCert'] ? 'https' : undefined);
      // The gateway's metrics need a token where there are keys; those of workers need none.
      expect(authorization?.credentials).toEqual(
        flags['metricsTokenFile'] ? { name: 'code-metrics', key: 'token' } : undefined,
      );
      expect(flags['metricsTokenFile'] === undefined).toBe(role !== 'gateway' || flags['apiKeysFile'] === undefined);
      for (const label of spec.podTargetLabels) {
        expect(deployment.spec.template.metadata.labels[label], label).toBeDefined();
      }
      expect(spec.podTargetLabels).toEqual(['app.kubernetes.io/instance', COMPONENT]);
      return role;
    });
    expect(roles.toSorted()).toEqual(pods.map(({ role }) => role).toSorted());
  });
});
