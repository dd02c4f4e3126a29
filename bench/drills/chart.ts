/**
 * The pods of the Helm chart as it renders with the least values: their exact command lines, variables and times. The
 * rendering is the one that the tests keep beside the chart (test/goldens/chart).
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseAllDocuments } from 'yaml';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import type { Role } from '../../services/supervisor.ts';

/** From the package's folder; a package that was installed has no such file. */
const RENDERING = join('test', 'goldens', 'chart', 'small.rendered.yaml');

/** What runs in a container. */
interface ContainerCommand {
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

export interface ChartContainer extends ContainerCommand {
  /** Folders at which volumes are mounted. */
  readonly mounts: readonly string[];
}

/** A Deployment of a service. */
export interface ChartPods extends ChartContainer {
  readonly role: Role;
  readonly replicas: number;
  /** The port of its gRPC or HTTP, and of its probes and metrics. */
  readonly port: number;
  readonly metricsPort: number;
  readonly readyPath: string;
  /** How long a new pod must have been ready before an old one goes. */
  readonly minReadyMs: number;
  readonly preStopMs: number;
  /** Time from the beginning of preStop until a pod is killed. */
  readonly graceMs: number;
}

export interface Chart {
  readonly pods: readonly ChartPods[];
  readonly redis: ChartContainer;
  /** The name of each part's Service. */
  readonly services: ReadonlyMap<Role | 'redis', string>;
}

interface Container {
  readonly args: readonly string[];
  readonly env?: readonly { readonly name: string; readonly value: string }[];
  readonly ports: readonly { readonly name: string; readonly containerPort: number }[];
  readonly readinessProbe: { readonly httpGet: { readonly path: string; readonly port: string } };
  readonly lifecycle: { readonly preStop: { readonly exec: { readonly command: readonly [string, string] } } };
  readonly volumeMounts: readonly { readonly mountPath: string }[];
}

interface Resource {
  readonly kind: string;
  readonly metadata: { readonly name: string };
  readonly spec: {
    readonly selector: Readonly<Record<string, string>>;
    readonly replicas: number;
    readonly minReadySeconds: number;
    readonly template: {
      readonly spec: { readonly terminationGracePeriodSeconds: number; readonly containers: readonly [Container] };
    };
  };
}

const COMPONENT = 'app.kubernetes.io/component';

/** @returns the chart's parts, or in words what is lacking. */
export async function readChart(path = join(PACKAGE_ROOT, RENDERING)): Promise<Chart | string> {
  const text = await readFile(path, 'utf8').catch(() => undefined);
  if (text === undefined) return `needs the repository: there is no ${RENDERING}`;
  const resources = parseAllDocuments(text).map((document) => document.toJS() as Resource);
  const ofKind = (kind: string) => resources.filter((resource) => resource.kind === kind);
  const services = ofKind('Service').map(({ metadata, spec }) => [spec.selector[COMPONENT]!, metadata.name] as const);
  const [redis] = ofKind('StatefulSet');
  return {
    pods: ofKind('Deployment').map(podsOf),
    redis: containerOf(redis!.spec.template.spec.containers[0]),
    services: new Map(services) as Chart['services'],
  };
}

const containerOf = ({ args, env = [], volumeMounts }: Container): ChartContainer => ({
  args,
  env: Object.fromEntries(env.map(({ name, value }) => [name, value])),
  mounts: volumeMounts.map(({ mountPath }) => mountPath),
});

function podsOf({ spec }: Resource): ChartPods {
  const { terminationGracePeriodSeconds, containers } = spec.template.spec;
  const [container] = containers;
  const { httpGet } = container.readinessProbe;
  const portOf = (wanted: string) => container.ports.find(({ name }) => name === wanted)!.containerPort;
  return {
    ...containerOf(container),
    role: container.args[0] as Role,
    replicas: spec.replicas,
    port: container.ports[0]!.containerPort,
    metricsPort: portOf(httpGet.port),
    readyPath: httpGet.path,
    minReadyMs: 1000 * spec.minReadySeconds,
    preStopMs: 1000 * Number(container.lifecycle.preStop.exec.command[1]),
    graceMs: 1000 * terminationGracePeriodSeconds,
  };
}

/**
 * A container's command with folders of this machine in place of those at which volumes are mounted. Nothing else
 * changes.
 * @param folderOf the folder for a mounted one.
 */
export function commandHere(
  { args, env, mounts }: ChartContainer,
  folderOf: (mount: string) => string,
): ContainerCommand {
  const here = (value: string) => {
    const mount = mounts.find((each) => `${value}/`.startsWith(`${each}/`));
    return mount === undefined ? value : `${folderOf(mount)}${value.slice(mount.length)}`;
  };
  const inArgument = (word: string) => {
    const [, flag = '', value = ''] = /^(--[a-z-]+=)(.*)$/s.exec(word) ?? [];
    return flag === '' ? word : `${flag}${here(value)}`;
  };
  return {
    args: args.map(inArgument),
    env: Object.fromEntries(Object.entries(env).map(([name, value]) => [name, here(value)])),
  };
}
