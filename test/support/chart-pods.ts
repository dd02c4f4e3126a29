/** Pods of the chart's renderings, in the words of the product: roles, settings, files. */
import { expect } from 'vitest';
import { parse } from 'yaml';
import { COLOCATED_SETTINGS } from '../../services/colocated/settings.ts';
import { DECODE_SETTINGS } from '../../services/decode/settings.ts';
import { GATEWAY_SETTINGS } from '../../services/gateway/settings.ts';
import { INDEXER_SETTINGS } from '../../services/indexer/settings.ts';
import { flagName, keyName, type SettingsTable } from '../../services/lib/process/config.ts';
import { PREFILL_SETTINGS } from '../../services/prefill/settings.ts';
import { loadConfig, SETTINGS } from '../../services/settings.ts';
import { ofKind, type Resource } from './chart.ts';

/** The settings of the service that each role runs. */
const TABLES: Readonly<Record<string, SettingsTable>> = {
  gateway: GATEWAY_SETTINGS,
  prefill: PREFILL_SETTINGS,
  decode: DECODE_SETTINGS,
  colocated: COLOCATED_SETTINGS,
  indexer: INDEXER_SETTINGS,
};

interface Probe {
  readonly httpGet: { readonly path: string; readonly port: string; readonly scheme: string };
  readonly periodSeconds: number;
  readonly failureThreshold: number;
}

interface Container {
  readonly name: string;
  readonly image: string;
  readonly command?: readonly string[];
  readonly args: readonly string[];
  readonly env?: readonly { readonly name: string; readonly value?: string; readonly valueFrom?: object }[];
  readonly ports: readonly { readonly name: string; readonly containerPort: number }[];
  readonly startupProbe: Probe;
  readonly readinessProbe: Probe;
  readonly livenessProbe: Probe;
  readonly lifecycle: { readonly preStop: { readonly exec: { readonly command: readonly string[] } } };
  readonly resources: Readonly<Record<'requests' | 'limits', Readonly<Record<string, string | number>>>>;
  readonly securityContext: object;
  readonly volumeMounts: readonly { readonly name: string; readonly mountPath: string; readonly readOnly?: boolean }[];
}

interface PodSpec {
  readonly automountServiceAccountToken: boolean;
  readonly enableServiceLinks: boolean;
  readonly terminationGracePeriodSeconds: number;
  readonly securityContext: object;
  readonly runtimeClassName?: string;
  readonly nodeSelector?: object;
  readonly tolerations?: readonly object[];
  readonly topologySpreadConstraints?: readonly { readonly topologyKey: string; readonly labelSelector: Selector }[];
  readonly initContainers?: readonly Container[];
  readonly containers: readonly [Container];
  readonly volumes: readonly Volume[];
}

interface Volume {
  readonly name: string;
  readonly emptyDir?: object;
  readonly configMap?: { readonly name: string };
  readonly secret?: { readonly secretName: string; readonly defaultMode: number; readonly items?: readonly object[] };
  readonly persistentVolumeClaim?: object;
  readonly image?: object;
}

export interface Selector {
  readonly matchLabels: Readonly<Record<string, string>>;
}

interface Deployment {
  readonly replicas?: number;
  readonly minReadySeconds: number;
  readonly progressDeadlineSeconds: number;
  readonly strategy: { readonly rollingUpdate: { readonly maxSurge: number; readonly maxUnavailable: number } };
  readonly selector: Selector;
  readonly template: {
    readonly metadata: { readonly labels: Readonly<Record<string, string>> };
    readonly spec: PodSpec;
  };
}

/** A Deployment of a service, whose command line has been read. */
export interface ServicePod {
  readonly role: string;
  /** Whether it serves the candidate of a rollout. */
  readonly candidate: boolean;
  readonly deployment: Resource<Deployment>;
  readonly pod: PodSpec;
  readonly container: Container;
  /** The settings as the service would read them: flags, variables, configuration file and defaults. */
  readonly config: Readonly<Record<string, unknown>>;
  /** The settings that the command line gives. */
  readonly flags: Readonly<Record<string, string>>;
}

export const COMPONENT = 'app.kubernetes.io/component';

export const matches = ({ matchLabels }: Selector, labels: Readonly<Record<string, string>>) =>
  Object.entries(matchLabels).every(([key, value]) => labels[key] === value);

/**
 * Every Deployment, as its service would start. A flag or variable that its service does not know fails the test, and
 * so does a value that it refuses.
 */
export function servicePods(resources: readonly Resource[]): ServicePod[] {
  return ofKind<Deployment>(resources, 'Deployment').map((deployment) => {
    const pod = deployment.spec.template.spec;
    const [container] = pod.containers;
    const role = container.args[0]!;
    const table = TABLES[role];
    expect(table, `${role} is a service`).toBeDefined();
    const names = new Map(['config', ...Object.keys(table!)].map((name) => [flagName(name), name]));
    const flags = Object.fromEntries(
      container.args.slice(1).map((word) => {
        const [flag = '', value] = word.split(/=(.*)/s);
        expect(names.has(flag), `${role} has the setting ${flag}`).toBe(true);
        expect(value, word).toBeDefined();
        return [names.get(flag)!, value!];
      }),
    );
    expect(Object.keys(flags), 'no flag is given twice').toHaveLength(container.args.length - 1);
    // A value from a Secret is not in the rendering: that of the store is the one that there is.
    const variables = (container.env ?? []).map(({ name, value }) => [name, value ?? 'redis://of.a.secret:6379']);
    const { config: path, ...rest } = flags;
    const config = loadConfig(table!, rest, Object.fromEntries(variables), path ? fileAt(path, pod, resources) : {});
    const candidate = deployment.spec.template.metadata.labels[COMPONENT] === `candidate-${role}`;
    return { role, candidate, deployment, pod, container, config, flags };
  });
}

/** The configuration file that a pod finds at a path. */
function fileAt(path: string, pod: PodSpec, resources: readonly Resource[]): Record<string, unknown> {
  const { name, mountPath } = pod.containers[0].volumeMounts.find((mount) => path.startsWith(`${mount.mountPath}/`))!;
  const map = pod.volumes.find((volume) => volume.name === name)?.configMap?.name;
  const text = resources.find(({ kind, metadata }) => kind === 'ConfigMap' && metadata.name === map)?.data?.[
    path.slice(mountPath.length + 1)
  ];
  expect(text, `${path} is in the volume ${name}`).toBeDefined();
  const names = new Map(Object.keys(SETTINGS).map((name) => [keyName(name), name]));
  return Object.fromEntries(
    Object.entries(parse(text!) as object).map(([key, value]) => {
      expect(names.has(key), `${key} is a setting of some service`).toBe(true);
      return [names.get(key)!, value];
    }),
  );
}

/** Bytes of a quantity. */
export function bytesOf(quantity: string | number | undefined): number {
  const [, count, unit] = /^(\d+)(Mi|Gi)$/.exec(String(quantity)) ?? [];
  expect(unit, `${quantity} is a quantity of memory`).toBeDefined();
  return Number(count) * (unit === 'Gi' ? 2 ** 30 : 2 ** 20);
}
