/** The pods of the Helm chart against the product: settings, ports, probes, times, memory, rights, devices. */
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { parse } from 'yaml';
import { sizesYaml } from '../../services/bundle-sizes.ts';
import { engineMemory } from '../../services/lib/engine/memory.ts';
import { assertRunsOn, type Manifest, openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { PRECISIONS, type Precision } from '../../services/lib/model/bundle/choices.ts';
import { exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { envName, flagName } from '../../services/lib/process/config.ts';
import { serveHealth } from '../../services/lib/process/health.ts';
import { measuredBy, metrics } from '../../services/lib/process/metrics.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { SETTINGS } from '../../services/settings.ts';
import { CASES, type Case, CHART, ofKind, type Resource, resourcesOf, valuesOf } from '../support/chart.ts';
import { bytesOf, COMPONENT, matches, type Selector, type ServicePod, servicePods } from '../support/chart-pods.ts';
import { fakeGateway, spelling } from '../support/fake-gateway.ts';

const token = spelling('ab');
const read = (path: string) => readFile(join(PACKAGE_ROOT, path), 'utf8');
const podsOf = async (name: Case) => servicePods(await resourcesOf(name));
const ROLES: Readonly<Record<Case, readonly string[]>> = {
  small: ['gateway', 'prefill', 'decode', 'indexer'],
  plain: ['gateway', 'prefill', 'decode'],
  whole: ['gateway', 'prefill', 'decode', 'colocated', 'indexer'],
  colocated: ['gateway', 'colocated'],
  webgpu: ['gateway', 'prefill', 'decode', 'indexer'],
  cuda12: ['gateway', 'prefill', 'decode', 'indexer'],
  candidate: ['gateway', 'prefill', 'decode', 'indexer', 'prefill', 'decode', 'indexer'],
};
/** Flags of the folders that a service writes to. */
const WRITTEN: ReadonlySet<string> = new Set(['prepacked', 'kvDiskDir']);
/** What a pod is called: its role, with a word before it where it serves the candidate of a rollout. */
const componentOf = ({ role, candidate }: Pick<ServicePod, 'role' | 'candidate'>) =>
  candidate ? `candidate-${role}` : role;
/** How long a cluster's name server keeps the addresses of a service, with the usual settings of CoreDNS, in s. */
const DNS_CACHE_SECONDS = 30;

describe('what the pods run', () => {
  test.each(CASES)('%s starts its services with settings that they have, and values that they take', async (name) => {
    const pods = await podsOf(name);
    expect(pods.map(({ role }) => role)).toEqual(ROLES[name]);
    const components = pods.map(({ deployment }) => deployment.spec.template.metadata.labels[COMPONENT]);
    expect(components).toEqual(pods.map(componentOf));
    expect(new Set(components).size, 'no two Deployments select the same pods').toBe(pods.length);
    for (const { deployment, container, ...part } of pods) {
      expect(deployment.metadata.name).toMatch(new RegExp(`-${componentOf(part)}$`));
      const others = (container.env ?? []).map((each) => each.name).filter((each) => !each.startsWith('LLAVACODE_'));
      const traced = ['OTEL_EXPORTER_OTLP_ENDPOINT', 'OTEL_TRACES_SAMPLER', 'OTEL_TRACES_SAMPLER_ARG'];
      expect(others).toEqual(['XDG_CACHE_HOME', 'TMPDIR', ...(name === 'whole' ? traced : [])]);
    }
  });

  test('settings of all services reach each of them by the configuration file', async () => {
    const byRole = new Map((await podsOf('whole')).map((pod) => [pod.role, pod.config]));
    expect(byRole.get('gateway')).toMatchObject({ tenantWeights: 'acme=3,beta=1', localPrefillTokens: 512 });
    expect(byRole.get('prefill')).toMatchObject({ queueTokens: 32_768 });
  });

  test.each(CASES)('gateways of %s find workers and indexer under names of headless services', async (name) => {
    const resources = await resourcesOf(name);
    const pods = servicePods(resources);
    const gateway = pods.find(({ role }) => role === 'gateway')!;
    type Service = {
      clusterIP?: string;
      selector: Record<string, string>;
      ports: { port: number; targetPort: string }[];
    };
    const services = new Map(ofKind<Service>(resources, 'Service').map((each) => [each.metadata.name, each.spec]));
    const reached = (list: unknown) =>
      [list].flat().map((address) => {
        const [, host = '', port] = /^(?:dns:)?([a-z-]+):(\d+)$/.exec(String(address)) ?? [];
        const service = services.get(host);
        expect(service, `${address} is a service`).toBeDefined();
        // Behind an address of its own there would be translation, which a proof of membership does not pass.
        expect(service!.clusterIP, host).toBe('None');
        const found = pods.filter(({ deployment }) =>
          matches({ matchLabels: service!.selector }, deployment.spec.template.metadata.labels),
        );
        expect(found, host).toHaveLength(1);
        expect(found[0]!.flags['port']).toBe(port);
        expect(service!.ports.map((each) => each.port)).toContain(Number(port));
        return componentOf(found[0]!);
      });
    const components = pods.map(componentOf);
    const having = (...roles: string[]) => {
      const all = name === 'candidate' ? roles.flatMap((role) => [role, `candidate-${role}`]) : roles;
      return all.filter((each) => components.includes(each));
    };
    expect(reached(gateway.config['prefillWorkers'])).toEqual(having('prefill', 'colocated'));
    expect(reached(gateway.config['decodeWorkers'])).toEqual(having('decode', 'colocated'));
    const indexer = gateway.config['indexer'];
    expect(indexer === '' ? [] : reached(indexer)).toEqual(components.filter((each) => each === 'indexer'));
    for (const { role, config } of pods.filter(({ role }) => role === 'gateway' || role === 'indexer')) {
      const host = /^redis:\/\/([a-z-]+):6379$/.exec(String(config['store']))?.[1];
      if (services.has(`${host}`)) expect(services.get(`${host}`)!.selector[COMPONENT], role).toBe('redis');
      else expect(['redis://redis.data:6379', 'redis://of.a.secret:6379'], role).toContain(config['store']);
    }
    const ofGateway = [...services].find(([service]) => service.endsWith('-gateway'))![1];
    expect(gateway.container.ports.map((port) => port.name)).toContain(ofGateway.ports[0]!.targetPort);
  });

  test.each(CASES)('every port and probe of %s is one that its service serves', async (name) => {
    const { app } = await fakeGateway({ token });
    onTestFinished(() => app.close());
    const health = await serveHealth('127.0.0.1', 0, { phase: 'ready' });
    for (const { role, container, flags } of await podsOf(name)) {
      const ports = new Map(container.ports.map((port) => [port.name, String(port.containerPort)]));
      const isGateway = role === 'gateway';
      expect(Object.fromEntries(ports)).toEqual(
        isGateway ? { http: flags['port'] } : { grpc: flags['port'], metrics: flags['metricsPort'] },
      );
      for (const probe of ['startupProbe', 'readinessProbe', 'livenessProbe'] as const) {
        const { path, port, scheme } = container[probe].httpGet;
        expect(port, probe).toBe(isGateway ? 'http' : 'metrics');
        expect(scheme).toBe(flags['tlsCert'] ? 'HTTPS' : 'HTTP');
        const status = isGateway
          ? (await app.inject({ url: path })).statusCode
          : (await fetch(`http://${health}${path}`)).status;
        expect([200, 503], `${role} ${path}`).toContain(status); // not 404
      }
      expect(container.livenessProbe.httpGet.path, 'being busy or draining is not being dead').toBe('/livez');
      expect(container.readinessProbe.httpGet.path).toBe('/readyz');
      expect([flags['host'], isGateway || flags['metricsHost']]).toEqual(['0.0.0.0', isGateway || '0.0.0.0']);
    }
  });

  test.each(CASES)('every file and folder that the services of %s are given is in a volume', async (name) => {
    for (const { role, pod, container, flags } of await podsOf(name)) {
      const volumes = new Map(pod.volumes.map((volume) => [volume.name, volume]));
      for (const each of [...(pod.initContainers ?? []), container]) {
        for (const mount of each.volumeMounts) expect(volumes.has(mount.name), `${role}: ${mount.name}`).toBe(true);
      }
      const paths = Object.entries(flags).filter(([, value]) => value.startsWith('/'));
      expect(paths.map(([flag]) => flag)).toContain('model');
      for (const [flag, path] of paths) {
        const mount = container.volumeMounts.find(({ mountPath }) => `${path}/`.startsWith(`${mountPath}/`));
        expect(mount, `${role} ${flagName(flag)} ${path}`).toBeDefined();
        expect(mount!.readOnly ?? false, flag).toBe(!WRITTEN.has(flag));
        const { secret } = volumes.get(mount!.name)!;
        const isSecret = /^(rpc|tls|apiKeys|metricsToken)/.test(flag);
        expect(secret !== undefined, flag).toBe(isSecret);
        // The services refuse a secret that everybody can read; the pod's group may.
        if (secret) expect(secret.defaultMode.toString(8)).toBe('440');
      }
    }
  });

  test('an init container exports the model in the image, in the precision of the values', async () => {
    for (const name of ['small', 'webgpu'] as const) {
      const { model } = await valuesOf(name);
      for (const { pod, flags, container } of await podsOf(name)) {
        const [init] = pod.initContainers!;
        const options = Object.fromEntries(init!.args.slice(1).map((word) => word.split('=')));
        expect([init!.args[0], init!.image]).toEqual(['export', container.image]);
        expect(options['--to']).toBe(flags['model']);
        expect(options['--precision']).toBe(model.precision);
        const shipped = options['--llm'].replace(/^\/app\//, '');
        expect(existsSync(join(PACKAGE_ROOT, shipped, 'config.json')), shipped).toBe(true);
        const cli = await read('services/cli.ts');
        for (const option of Object.keys(options)) expect(cli).toContain(`${option} <`);
      }
    }
    expect(await read('deploy/Dockerfile')).toMatch(/^WORKDIR \/app\n[\s\S]*^COPY models models$/m);
  });
});

describe('the times of pods', () => {
  test.each(CASES)('pods of %s get longer to stop than preStop and drain take together', async (name) => {
    const { shutdown } = await valuesOf(name);
    for (const { role, pod, container, config } of await podsOf(name)) {
      const [command, seconds] = container.lifecycle.preStop.exec.command;
      expect(command).toBe('sleep');
      const sumMs = Number(seconds) * 1000 + Number(config['drainTimeoutMs']);
      expect(pod.terminationGracePeriodSeconds * 1000 - sumMs, role).toBeGreaterThanOrEqual(
        shutdown.marginSeconds * 1000,
      );
    }
  });

  test.each(CASES)('a drain of %s outlasts every request that is running when it begins', async (name) => {
    const pods = await podsOf(name);
    const { requestTimeoutMs } = pods.find(({ role }) => role === 'gateway')!.config;
    // The gateway and the servers of workers cut off what still runs when a tenth of the time is left.
    for (const { role, config } of pods) {
      expect(Number(config['drainTimeoutMs']) * 0.9, role).toBeGreaterThan(Number(requestTimeoutMs));
    }
    // The defaults of the settings alone would not do: this is why the chart sets them.
    const [drain, request] = [SETTINGS.drainTimeoutMs.parse(undefined), SETTINGS.requestTimeoutMs.parse(undefined)];
    expect(drain * 0.9).toBeLessThan(request);
  });

  test.each(CASES)('an old pod of %s goes when name servers have told of the new one', async (name) => {
    const { startSeconds } = await valuesOf(name);
    for (const { role, deployment, container } of await podsOf(name)) {
      const { minReadySeconds, progressDeadlineSeconds } = deployment.spec;
      expect(minReadySeconds, role).toBeGreaterThan(DNS_CACHE_SECONDS);
      const { periodSeconds, failureThreshold } = container.startupProbe;
      expect(periodSeconds * failureThreshold).toBeGreaterThanOrEqual(startSeconds);
      expect(progressDeadlineSeconds).toBeGreaterThan(startSeconds + minReadySeconds);
    }
  });

  test('a pod is replaced before it goes, and on a card after', async () => {
    const strategies = async (name: Case) =>
      Object.fromEntries(
        (await podsOf(name)).map(({ role, deployment }) => {
          const { maxSurge, maxUnavailable } = deployment.spec.strategy.rollingUpdate;
          return [role, `${maxSurge} more, ${maxUnavailable} fewer`];
        }),
      );
    const [before, after] = ['1 more, 0 fewer', '0 more, 1 fewer'];
    expect(new Set(Object.values(await strategies('small')))).toEqual(new Set([before]));
    expect(await strategies('webgpu')).toEqual({ gateway: before, prefill: after, decode: after, indexer: after });
    expect(await strategies('cuda12')).toEqual({ gateway: before, prefill: after, decode: after, indexer: before });
  });
});

describe('the resources of pods', () => {
  /** A manifest with the sizes of the values, as the engine's arithmetic reads it. */
  const manifestOf = (model: Readonly<Record<string, number>> & { readonly precision: string }) => {
    const file = (bytes: number) => ({ files: [{ path: 'model.bin', bytes, sha256: '' }] });
    // One head of one layer, as wide as all: the arithmetic multiplies them.
    const bytes = model.precision.endsWith('fp16') ? 2 : 4;
    const spec = { layers: 1, kvHeads: 1, headDim: model['kvBytesPerToken']! / 2 / bytes, vocab: model['vocabulary'] };
    return {
      precision: model.precision,
      llm: { spec, ...file(model['weightsBytes']!) },
      prefill: file(model['promptWeightsBytes']!),
    } as unknown as Manifest;
  };

  test.each(CASES)('workers of %s get the memory that the engine adds up at its start, and their own', async (name) => {
    const values = await valuesOf(name);
    for (const { role, candidate, container, config } of await podsOf(name)) {
      const model = candidate ? values.candidate.model : values.model;
      const { limits, requests } = container.resources;
      const given = bytesOf(limits['memory']);
      expect(requests['memory'], 'a pod that may take more than it asked for is killed first').toBe(limits['memory']);
      const { overheadMiB } = values[role as 'prefill'];
      let need = overheadMiB * 2 ** 20;
      if (role === 'gateway') {
        need += model['contextWeightsBytes']! + Number(config['indexCacheBytes']) + Number(config['rowCacheBytes']);
        if (config['rollouts'])
          need += values.candidate.model['contextWeightsBytes']! + Number(config['indexCacheBytes']);
      } else if (role === 'indexer') need += model['contextWeightsBytes']!;
      else {
        const slots = Number(config['slots']) + (config['provider'] === 'cpu' ? 0 : 1);
        const part = role === 'prefill' ? 'prefill' : 'llm';
        const { weights, kv, logits } = engineMemory(manifestOf(model), part, slots, Number(config['capacity']));
        need += weights + kv + logits;
      }
      expect(given - need, role).toBeGreaterThanOrEqual(0);
      expect(given - need, role).toBeLessThan(2 ** 20);
      expect(String(config['threads']), 'more threads than cores would only be throttled').toBe(requests['cpu']);
    }
  });

  test('bundle sizes prints the values of the model that ships, which the chart has as defaults', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-sizes-'));
    onTestFinished(() => rm(dir, { recursive: true, force: true }));
    const llm = join(PACKAGE_ROOT, 'models', 'tiny-coder');
    for (const [name, precision] of [
      ['small', 'fp32'],
      ['webgpu', 'int4-fp16'],
      ['cuda12', 'int4-fp16'],
    ] as const) {
      const to = join(dir, name);
      await exportBundle({ llm, projector: join(llm, 'projector'), to, name: 'tiny-coder', precision });
      const printed = parse(sizesYaml((await openBundle(to)).manifest)) as { model: object };
      expect(printed.model).toEqual((await valuesOf(name)).model);
    }
  });
});

describe('the rights of pods', () => {
  test.each(CASES)('no container of %s is root, gains rights, or writes beside its volumes', async (name) => {
    const resources = await resourcesOf(name);
    const image = await read('deploy/Dockerfile');
    expect(image).toContain('USER 1000:1000'); // as node is in the other images
    type Set = { template: { spec: ServicePod['pod'] } };
    const pods = [...ofKind<Set>(resources, 'Deployment'), ...ofKind<Set>(resources, 'StatefulSet')];
    expect(pods.length).toBeGreaterThan(1);
    for (const { metadata, spec } of pods) {
      const pod = spec.template.spec;
      const user = metadata.name.endsWith('-redis') ? 999 : 1000;
      expect(pod, metadata.name).toMatchObject({ automountServiceAccountToken: false, enableServiceLinks: false });
      expect(pod.securityContext).toMatchObject({
        runAsNonRoot: true,
        runAsUser: user,
        runAsGroup: user,
        fsGroup: user,
        seccompProfile: { type: 'RuntimeDefault' },
      });
      for (const container of [...(pod.initContainers ?? []), ...pod.containers]) {
        expect(container.securityContext, container.name).toEqual({
          allowPrivilegeEscalation: false,
          readOnlyRootFilesystem: true,
          capabilities: { drop: ['ALL'] },
        });
      }
    }
  });
});

describe('the candidate of a rollout', () => {
  test('its workers and its indexer serve its bundle, and gateways have that bundle beside their own', async () => {
    const pods = await podsOf('candidate');
    const bundles = Object.fromEntries(pods.map((pod) => [componentOf(pod), pod.flags['model']]));
    const [own, other] = ['/bundle/coder-7b', '/bundle/coder-7b-next'];
    expect(bundles).toEqual({
      ...{ gateway: own, prefill: own, decode: own, indexer: own },
      ...{ 'candidate-prefill': other, 'candidate-decode': other, 'candidate-indexer': other },
    });
    const gateway = pods.find(({ role }) => role === 'gateway')!;
    expect(gateway.config['rollouts'], 'POST /v1/rollout is there').toBe(true);
    const mount = gateway.container.volumeMounts.find(({ name }) => name === 'candidate');
    expect(mount).toMatchObject({ mountPath: '/candidate', readOnly: true });
    expect(gateway.pod.volumes.find(({ name }) => name === 'candidate')).toMatchObject({
      persistentVolumeClaim: { claimName: 'bundles' },
    });
    const replicas = pods.map((pod) => [componentOf(pod), pod.deployment.spec.replicas]);
    expect(Object.fromEntries(replicas)).toMatchObject({ prefill: 2, 'candidate-prefill': 2, 'candidate-decode': 1 });
  });

  test('no other case takes part in rollouts, or has a volume of a candidate', async () => {
    for (const name of CASES.filter((each) => each !== 'candidate')) {
      for (const { config, pod } of await podsOf(name)) {
        expect(config['rollouts'] ?? false).toBe(false);
        expect(pod.volumes.map((volume) => volume.name)).not.toContain('candidate');
      }
    }
  });

  test('decoders pull KV from the prefill workers of their own bundle alone, and gateways reach both', async () => {
    type Peer = { podSelector: Selector };
    type Policy = { podSelector: Selector; ingress: { ports: { port: string }[]; from?: Peer[] }[] };
    const policies = ofKind<Policy>(await resourcesOf('candidate'), 'NetworkPolicy');
    const callersOf = (component: string) => {
      const { spec } = policies.find((each) => each.spec.podSelector.matchLabels[COMPONENT] === component)!;
      const [grpc] = spec.ingress.filter(({ ports }) => ports.some(({ port }) => port === 'grpc'));
      return grpc!.from!.map(({ podSelector }) => podSelector.matchLabels[COMPONENT]);
    };
    expect(callersOf('prefill')).toEqual(['gateway', 'decode']);
    expect(callersOf('candidate-prefill')).toEqual(['gateway', 'candidate-decode']);
    expect(callersOf('candidate-decode')).toEqual(['gateway']);
    expect(callersOf('candidate-indexer')).toEqual(['gateway']);
  });

  test('alerts of the chart are those of rules.yml, with the address of the runbook that the values give', async () => {
    type Rule = { alert?: string; annotations?: { runbook_url: string } };
    type Groups = { groups: { rules: Rule[] }[] };
    const [object] = ofKind<Groups>(await resourcesOf('candidate'), 'PrometheusRule');
    const rules = parse(await read('deploy/observability/rules.yml')) as Groups;
    const alertsOf = ({ groups }: Groups) => groups.flatMap((group) => group.rules.flatMap(({ alert = [] }) => alert));
    expect(alertsOf(object!.spec)).toEqual(alertsOf(rules));
    const links = object!.spec.groups.flatMap((group) => group.rules.flatMap(({ annotations = [] }) => annotations));
    expect(links.length).toBeGreaterThan(10);
    for (const { runbook_url } of links) {
      expect(runbook_url).toMatch(/^https:\/\/wiki\.example\/llavacode#llavacode[a-z0-9]+$/);
    }
  });
});

describe('what GPU classes change', () => {
  test.each([
    ['webgpu', 'webgpu'],
    ['cuda12', 'cuda'],
  ] as const)('the class %s puts on a card what its compose file does', async (name, provider) => {
    const { services } = parse(await read(`deploy/compose.${name}.yml`), { merge: true }) as { services: object };
    const computing = Object.keys(services).filter((service) => service !== 'bundle');
    const { model } = await valuesOf(name);
    expect(() => assertRunsOn({ name, precision: model.precision as Precision }, provider)).not.toThrow();
    expect(await read('deploy/Dockerfile')).toMatch(new RegExp(`^FROM \\S+ AS ${name}$`, 'm'));
    for (const { role, pod, container, config } of await podsOf(name)) {
      const onCard = computing.includes(role);
      expect(container.resources.limits['nvidia.com/gpu'], role).toBe(onCard ? 1 : undefined);
      expect(container.image, role).toBe(`llavacode-serving:0.1.0${onCard ? `-${name}` : ''}`);
      if (role !== 'gateway') expect(config['provider'], role).toBe(onCard ? provider : 'cpu');
      const placed = { nodeSelector: pod.nodeSelector, tolerations: pod.tolerations, runtime: pod.runtimeClassName };
      const expected = {
        nodeSelector: { 'nvidia.com/gpu.present': 'true' },
        tolerations: [{ key: 'nvidia.com/gpu', operator: 'Exists', effect: 'NoSchedule' }],
        runtime: 'nvidia',
      };
      expect(placed, role).toEqual(onCard && name === 'webgpu' ? expected : {});
    }
    const memory = (await podsOf(name)).map(({ config }) => config['deviceMemory']);
    expect(memory).toContain(name === 'webgpu' ? 21_474_836_480 : undefined);
  });

  test('the chart refuses the precisions that CUDA does not compute, and no others', async () => {
    const checks = await readFile(join(CHART, 'templates', '_checks.tpl'), 'utf8');
    const [, list = ''] = /not \(has \$v\.model\.precision \(list ([^)]*)\)\)/.exec(checks) ?? [];
    const computed = PRECISIONS.filter((precision) => {
      try {
        assertRunsOn({ name: 'any', precision }, 'cuda');
        return true;
      } catch {
        return false;
      }
    });
    expect(list.split(' ').map((word) => JSON.parse(word))).toEqual(computed);
    const schema = JSON.parse(await readFile(join(CHART, 'values.schema.json'), 'utf8'));
    expect(schema.properties.model.properties.precision.enum).toEqual([...PRECISIONS]);
  });

  test('what a pod computes on is a flag, so that one look at the pod shows it', async () => {
    for (const { container } of await podsOf('webgpu')) {
      const ours = (container.env ?? []).map(({ name }) => name).filter((name) => name.startsWith('LLAVACODE_'));
      expect(ours.filter((name) => name !== envName('store'))).toEqual([]);
    }
  });
});

describe('who reaches whom', () => {
  interface Peer {
    readonly podSelector?: Selector;
  }
  interface Rule {
    readonly ports: readonly { readonly port: string | number; readonly protocol: string }[];
    readonly from?: readonly Peer[];
    readonly to?: readonly Peer[];
  }
  interface Policy {
    readonly podSelector: Selector;
    readonly policyTypes: readonly string[];
    readonly ingress: readonly Rule[];
    readonly egress: readonly Rule[];
  }
  const labelsOf = (resources: readonly Resource[]) => {
    type Set = { template: { metadata: { labels: Record<string, string> } } };
    const sets = [...ofKind<Set>(resources, 'Deployment'), ...ofKind<Set>(resources, 'StatefulSet')];
    return sets.map(({ spec }) => spec.template.metadata.labels);
  };

  /** `from → to` of all pairs of pods between which both policies let a port through. */
  function allowed(resources: readonly Resource[], ports: readonly (string | number)[]): string[] {
    const policies = ofKind<Policy>(resources, 'NetworkPolicy').map(({ spec }) => spec);
    const all = labelsOf(resources);
    const lets = (rules: readonly Rule[], key: 'from' | 'to', peer: Record<string, string>) =>
      rules.some(
        (rule) =>
          rule.ports.some(({ port }) => ports.includes(port)) &&
          (rule[key] === undefined || rule[key].some(({ podSelector }) => podSelector && matches(podSelector, peer))),
      );
    return all.flatMap((from) =>
      all
        .filter((to) => {
          const [ofFrom, ofTo] = [from, to].map((labels) =>
            policies.filter((each) => matches(each.podSelector, labels)),
          );
          expect([ofFrom!.length, ofTo!.length]).toEqual([1, 1]);
          return lets(ofFrom![0]!.egress, 'to', to) && lets(ofTo![0]!.ingress, 'from', from);
        })
        .map((to) => `${from[COMPONENT]} → ${to[COMPONENT]}`),
    );
  }

  test('only gateways call workers and the indexer, and only decoders pull KV caches', async () => {
    expect(allowed(await resourcesOf('small'), ['grpc', 9000]).toSorted()).toEqual([
      'decode → prefill',
      'gateway → decode',
      'gateway → indexer',
      'gateway → prefill',
    ]);
    expect(allowed(await resourcesOf('whole'), ['grpc', 9000]).toSorted()).toEqual([
      'colocated → colocated',
      'colocated → prefill',
      'decode → colocated',
      'decode → prefill',
      'gateway → colocated',
      'gateway → decode',
      'gateway → indexer',
      'gateway → prefill',
    ]);
  });

  test('only gateways and the indexer reach Redis, and no pod of the system reaches metrics', async () => {
    const resources = await resourcesOf('small');
    expect(allowed(resources, ['redis', 6379]).toSorted()).toEqual(['gateway → redis', 'indexer → redis']);
    expect(allowed(resources, ['metrics', 9090])).toEqual([]);
  });

  test('what is let in from other namespaces is what the values say', async () => {
    const byName = new Map(
      ofKind<Policy>(await resourcesOf('whole'), 'NetworkPolicy').map(({ metadata, spec }) => [metadata.name, spec]),
    );
    const namespace = (name: string) => ({
      namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': name } },
    });
    expect(byName.get('code-gateway')!.ingress).toEqual([
      { ports: [{ port: 'http', protocol: 'TCP' }], from: [namespace('edge'), namespace('monitoring')] },
    ]);
    expect(byName.get('code-decode')!.ingress.at(-1)).toEqual({
      ports: [{ port: 'metrics', protocol: 'TCP' }],
      from: [namespace('monitoring')],
    });
    expect(byName.get('code-indexer')!.egress.at(-2)).toEqual({
      ports: [{ port: 6380, protocol: 'TCP' }],
      to: [{ ipBlock: { cidr: '10.20.0.0/16' } }],
    });
    for (const role of ['gateway', 'prefill', 'decode', 'colocated', 'indexer']) {
      expect(byName.get(`code-${role}`)!.egress.at(-1), role).toEqual({
        ports: [{ port: 4318, protocol: 'TCP' }],
        to: [namespace('monitoring')],
      });
    }
  });

  test.each(CASES)('budgets and spreads of %s select the pods of one role each', async (name) => {
    const resources = await resourcesOf(name);
    const all = labelsOf(resources);
    const rolesOf = (selector: Selector) =>
      all.filter((labels) => matches(selector, labels)).map((each) => each[COMPONENT]);
    const budgets = ofKind<{ selector: Selector; maxUnavailable: number }>(resources, 'PodDisruptionBudget');
    expect(budgets.flatMap(({ spec }) => rolesOf(spec.selector))).toEqual(
      name === 'plain' ? [] : expect.arrayContaining(servicePods(resources).map(componentOf)),
    );
    expect(budgets).toHaveLength(name === 'plain' ? 0 : ROLES[name].length);
    // 0 would let no node be drained.
    for (const { spec } of budgets) expect(spec.maxUnavailable).toBe(1);
    for (const { pod, deployment, ...part } of servicePods(resources)) {
      expect(rolesOf(deployment.spec.selector)).toEqual([componentOf(part)]);
      const spread = pod.topologySpreadConstraints ?? [];
      expect(spread.map(({ topologyKey }) => topologyKey)).toEqual(
        name === 'plain' ? [] : ['topology.kubernetes.io/zone', 'kubernetes.io/hostname'],
      );
      for (const { labelSelector } of spread) expect(rolesOf(labelSelector)).toEqual([componentOf(part)]);
    }
  });
});

test('an inference pool has the gateways as its endpoints, on the port of their metrics', async () => {
  const resources = await resourcesOf('whole');
  type Pool = { selector: Selector; targetPorts: { number: number }[]; endpointPickerRef: object };
  const [pool] = ofKind<Pool>(resources, 'InferencePool');
  const pods = servicePods(resources);
  const endpoints = pods.filter(({ deployment }) =>
    matches(pool!.spec.selector, deployment.spec.template.metadata.labels),
  );
  expect(endpoints.map(({ role }) => role)).toEqual(['gateway']);
  expect(pool!.spec.targetPorts).toEqual([{ number: Number(endpoints[0]!.flags['port']) }]);
  const { app } = await fakeGateway({ token });
  onTestFinished(() => app.close());
  expect((await app.inject({ url: '/metrics' })).statusCode).toBe(200);
  expect([...measuredBy(metrics.waiting)]).toContain('gateway'); // by which an endpoint picker chooses
  const roles = pods.map(({ role, deployment }) => [role, deployment.spec.template.metadata.labels['llm-d.ai/role']]);
  expect(Object.fromEntries(roles)).toEqual({
    gateway: 'prefill-decode',
    prefill: 'prefill',
    decode: 'decode',
    colocated: 'prefill-decode',
    indexer: undefined,
  });
});
