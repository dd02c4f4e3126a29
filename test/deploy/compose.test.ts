/**
 * docker-compose.yml against the settings: a flag or a service that does not exist shows only when somebody starts
 * it.
 */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { parse } from 'yaml';
import { assertRunsOn } from '../../services/lib/model/bundle/bundle.ts';
import type { Precision } from '../../services/lib/model/bundle/choices.ts';
import { envName, flagName } from '../../services/lib/process/config.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { loadConfig, SETTINGS } from '../../services/settings.ts';

interface Service {
  readonly image: string;
  readonly build?: { readonly context: string; readonly dockerfile: string };
  readonly command?: readonly string[];
  readonly restart?: string;
  readonly profiles?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly depends_on?: Readonly<Record<string, { readonly condition: string }>>;
  readonly deploy?: { readonly resources: { readonly limits: { readonly memory?: string; readonly cpus?: string } } };
  readonly healthcheck?: { readonly test: readonly string[]; readonly start_period?: string };
  readonly stop_grace_period?: string;
}

type Setting = keyof typeof SETTINGS;
const flags = new Map(Object.keys(SETTINGS).map((setting) => [flagName(setting), setting as Setting]));
const variables = new Map(Object.keys(SETTINGS).map((setting) => [envName(setting), setting as Setting]));
const PROCESSES = ['prefill', 'decode', 'indexer', 'gateway'];

/** The services, where nobody sets a variable that the file has a default for. */
async function composeServices(): Promise<ReadonlyMap<string, Service>> {
  const text = await readFile(join(PACKAGE_ROOT, 'docker-compose.yml'), 'utf8');
  const withDefaults = text.replace(/\$\{\w+:-([^}]*)\}/g, '$1');
  const { services } = parse(withDefaults, { merge: true }) as { services: Record<string, Service> };
  return new Map(Object.entries(services));
}

/** The settings that a command gives, by their names. */
function settingsOf([, ...words]: readonly string[]): Record<string, string> {
  const rest = words.flatMap((word) => word.split('='));
  const given: Record<string, string> = {};
  for (let i = 0; i < rest.length; i += 2) {
    const setting = flags.get(rest[i] as string);
    expect(setting, rest[i]).toBeDefined();
    given[setting as Setting] = rest[i + 1] as string;
  }
  return given;
}

test('docker-compose.yml names settings that there are, with values that they take, and services that there are', async () => {
  const all = await composeServices();
  expect([...all.keys()]).toEqual(expect.arrayContaining(PROCESSES));
  for (const name of PROCESSES) {
    const { command = [], environment = {} } = all.get(name) as Service;
    expect(command[0]).toBe(name);
    const given = settingsOf(command);
    const names = [...Object.keys(given), ...Object.keys(environment).map((variable) => variables.get(variable))];
    expect(names, `${name}: a variable that is not a setting`).not.toContain(undefined);
    const table = Object.fromEntries((names as Setting[]).map((setting) => [setting, SETTINGS[setting]]));
    expect(loadConfig(table, given, environment)).toBeDefined();
    for (const value of Object.values(given)) {
      const host = /^(?:dns:)?([a-z]+):\d+$/.exec(value)?.[1];
      if (host) expect(all.has(host), value).toBe(true);
    }
  }
  // An address that several processes answer at is not the name of one of them.
  expect(all.get('prefill')?.command).not.toContain('--advertise');
  expect(all.get('gateway')?.command?.flatMap((word) => word.split('='))).toEqual(
    expect.arrayContaining(['--indexer', 'indexer:9000', 'dns:prefill:9000']),
  );
});

test('every service that stays is started again when it ends, and can be judged healthy', async () => {
  const staying = [...(await composeServices())].filter(([, { profiles }]) => profiles === undefined);
  expect(staying.map(([name]) => name).sort()).toEqual([...PROCESSES, 'redis'].sort());
  for (const [name, { restart, healthcheck }] of staying) {
    expect(restart, name).toBe('unless-stopped');
    expect(healthcheck, name).toBeDefined();
  }
});

test('a tool of docker-compose.yml runs once', async () => {
  const tools = [...(await composeServices())].filter(([, { profiles }]) => profiles !== undefined);
  expect(tools.map(([name, { restart }]) => [name, restart])).toEqual([
    ['bundle', 'no'],
    ['index', 'no'],
  ]);
});

test('every service has a limit of memory, and the threads of a worker are the cores that it may use', async () => {
  const all = await composeServices();
  for (const [name, { deploy }] of all) expect(deploy?.resources.limits.memory, name).toMatch(/^\d+g$/);
  for (const name of ['prefill', 'decode', 'indexer']) {
    const { deploy, environment } = all.get(name) as Service;
    expect(deploy?.resources.limits.cpus, name).toBe(environment?.['LLAVACODE_THREADS']);
  }
});

test('a worker may take ten minutes to become ready, and a service more time to stop than it takes to drain', async () => {
  const all = await composeServices();
  for (const name of ['prefill', 'decode', 'indexer']) {
    expect(all.get(name)?.healthcheck?.start_period, name).toBe('600s');
  }
  const drainMs = SETTINGS.drainTimeoutMs.parse(undefined);
  for (const name of PROCESSES) {
    const grace = /^(\d+)s$/.exec(all.get(name)?.stop_grace_period ?? '')?.[1];
    expect(Number(grace) * 1000, name).toBeGreaterThan(drainMs);
  }
});

interface Override {
  readonly build?: { readonly target: string };
  readonly image?: string;
  readonly command?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly deploy?: {
    readonly resources: { readonly reservations: { readonly devices: readonly { readonly capabilities: string[] }[] } };
  };
}

test.each([
  ['webgpu', 'webgpu', ['prefill', 'decode', 'indexer']],
  ['cuda12', 'cuda', ['prefill', 'decode']], // an encoder does not compute on CUDA
])(
  'deploy/compose.%s.yml puts every service that its provider computes on a card, with the image for it',
  async (target, provider, computing) => {
    const text = await readFile(join(PACKAGE_ROOT, 'deploy', `compose.${target}.yml`), 'utf8');
    const { services } = parse(text, { merge: true }) as { services: Record<string, Override> };
    const all = await composeServices();
    expect(Object.keys(services).filter((name) => !all.has(name))).toEqual([]);
    expect(all.get('bundle')?.profiles).toEqual(['tools']); // so that no other service starts it
    const dockerfile = await readFile(join(PACKAGE_ROOT, 'deploy', 'Dockerfile'), 'utf8');
    expect(dockerfile).toMatch(new RegExp(`^FROM \\S+ AS ${target}$`, 'm'));
    expect(Object.keys(services).toSorted()).toEqual(['bundle', ...computing].toSorted());
    for (const name of computing) {
      const { build, image, environment, deploy } = services[name]!;
      expect([build?.target, image], name).toEqual([target, `llavacode-serving:${target}`]);
      expect(
        deploy?.resources.reservations.devices.map(({ capabilities }) => capabilities),
        name,
      ).toEqual([['gpu']]);
      expect(environment, name).toEqual({ [envName('provider')]: provider });
      expect(loadConfig({ provider: SETTINGS.provider }, {}, environment ?? {}).provider).toBe(provider);
    }
    // The bundle is one that the card computes whole.
    const words = services['bundle']!.command!;
    const precision = words[words.indexOf('--precision') + 1] as Precision;
    expect(() => assertRunsOn({ name: 'bundle', precision }, provider as 'webgpu' | 'cuda')).not.toThrow();
    const page = await readFile(join(PACKAGE_ROOT, 'deploy', 'GPU.md'), 'utf8');
    const command = (words: string) =>
      `docker compose -f docker-compose.yml -f deploy/compose.${target}.yml ${words}\n`;
    const [bundle, up] = [command('run --build --rm bundle'), command('up --build --wait')];
    expect(page).toContain(bundle + up);
    expect(text).toContain(`#   ${bundle}#   ${up}`);
  },
);

test('the Dockerfile that docker-compose.yml names exists, and services wait for services that there are', async () => {
  const all = await composeServices();
  for (const [name, { build, depends_on }] of all) {
    if (build) expect(existsSync(join(PACKAGE_ROOT, build.context, build.dockerfile)), name).toBe(true);
    for (const [other, { condition }] of Object.entries(depends_on ?? {})) {
      expect(all.get(other)?.healthcheck, `${name} waits for ${other}`).toBeDefined();
      expect(condition).toBe('service_healthy');
    }
  }
});
