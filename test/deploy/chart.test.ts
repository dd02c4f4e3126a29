/** The Helm chart as a text: its renderings are of what it is now, its values have a schema, its objects too. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Ajv } from 'ajv';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import {
  CASES,
  CHART,
  chartDigest,
  helm,
  ofKind,
  RELEASE,
  render,
  renderedFile,
  resourcesOf,
  valuesFiles,
} from '../support/chart.ts';
import { problemsOf } from '../support/kubernetes-schemas.ts';

const HOW = 'render it anew with helm: see CONTRIBUTING.md';

describe('the renderings in test/goldens/chart', () => {
  test.each(CASES)('%s is what the chart says now, and what helm prints where there is a helm', async (name) => {
    const digest = await chartDigest(valuesFiles(name));
    const first = `# Rendered by npx vitest run test/deploy -u, of texts with SHA-256 ${digest}\n`;
    const command = await helm();
    if (command !== undefined) {
      const text = (await render(command, valuesFiles(name))).replace(/^# Source: .*\n/gm, '');
      await expect(first + text).toMatchFileSnapshot(renderedFile(name));
    } else {
      const kept = await readFile(renderedFile(name), 'utf8');
      expect(kept.startsWith(first), `${renderedFile(name)} is of another chart: ${HOW}`).toBe(true);
    }
  });

  test.each(CASES)('every object of %s is valid by its published schema, and has no field beside it', async (name) => {
    const resources = await resourcesOf(name);
    expect(resources.length).toBeGreaterThan(8);
    const problems = resources.flatMap((each) =>
      problemsOf(each).map((problem) => `${each.metadata.name}: ${problem}`),
    );
    expect(problems).toEqual([]);
  });

  test.each(CASES)('no two objects of %s have one name, and no name is too long', async (name) => {
    const names = (await resourcesOf(name)).map(({ kind, metadata }) => `${kind} ${metadata.name}`);
    expect(names.filter((each, i) => names.indexOf(each) !== i)).toEqual([]);
    expect(names.filter((each) => !/^\w+ [a-z]([a-z0-9-]{0,61}[a-z0-9])?$/.test(each))).toEqual([]);
  });

  test('the schemas find a wrong type, a missing field and an unknown one', async () => {
    type Container = Readonly<Record<string, unknown>>;
    type Deployment = { readonly template: { readonly spec: { readonly containers: readonly Container[] } } };
    const [deployment] = ofKind<Deployment>(await resourcesOf('small'), 'Deployment');
    const { template } = deployment!.spec;
    const withContainer = (changes: object) => {
      const containers = [{ ...template.spec.containers[0], ...changes }];
      return {
        ...deployment!,
        spec: { ...deployment!.spec, template: { ...template, spec: { ...template.spec, containers } } },
      };
    };
    expect(problemsOf(withContainer({}))).toEqual([]);
    expect(problemsOf(withContainer({ name: 7 })).join()).toMatch(/name must be string/);
    expect(problemsOf(withContainer({ name: undefined })).join()).toMatch(/must have required property/);
    expect(problemsOf(withContainer({ livenesProbe: {} }))).toEqual([
      '/spec/template/spec/containers/0/livenesProbe is not in the schema',
    ]);
    const [pool] = ofKind<object>(await resourcesOf('whole'), 'InferencePool');
    expect(problemsOf({ ...pool!, spec: { ...pool!.spec, targetPorts: [{ number: 70_000 }] } }).join()).toMatch(
      /65535/,
    );
    expect(problemsOf({ ...pool!, spec: { ...pool!.spec, targetPort: 1 } })).toEqual([
      '/spec/targetPort is not in the schema',
    ]);
  });
});

type Schema = { readonly properties?: Readonly<Record<string, Schema>>; readonly type?: string };
const isTree = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

describe('the values of the chart', () => {
  const read = async (path: string) => parse(await readFile(path, 'utf8'), { merge: true }) as object;
  const schemaOf = async () => JSON.parse(await readFile(join(CHART, 'values.schema.json'), 'utf8'));

  test('every value has a default and is in the schema, which refuses what it does not know', async () => {
    const missing = (schema: Schema, value: unknown, path: string): string[] => {
      if (schema.properties === undefined) return [];
      if (!isTree(value)) return [`${path} has no default`];
      const known = Object.keys(schema.properties).filter((key) => key !== 'global');
      const here = Object.keys(value);
      return [
        ...known.filter((key) => !here.includes(key)).map((key) => `${path}/${key} has no default`),
        ...here.filter((key) => !known.includes(key)).map((key) => `${path}/${key} is not in the schema`),
        ...known.flatMap((key) => missing(schema.properties![key]!, value[key as keyof object], `${path}/${key}`)),
      ].filter((problem) => !problem.startsWith('/rpc/mtls/issuerRef'));
    };
    const [schema, values] = [await schemaOf(), await read(join(CHART, 'values.yaml'))];
    expect(missing(schema, values, '')).toEqual([]);
    const validate = new Ajv({ allErrors: true, allowUnionTypes: true }).compile(schema);
    for (const name of CASES) {
      for (const file of valuesFiles(name)) {
        expect(validate(await read(file)), `${file}: ${JSON.stringify(validate.errors)}`).toBe(true);
      }
    }
    expect(validate(values)).toBe(true);
    expect(validate({ prefil: {} })).toBe(false);
    expect(validate({ prefill: { slot: 4 } })).toBe(false);
    expect(validate({ gpu: { class: 'rocm' } })).toBe(false);
  });

  test('the version of the chart, and of the image that it takes, is the one in package.json', async () => {
    const { version } = JSON.parse(await readFile(join(PACKAGE_ROOT, 'package.json'), 'utf8')) as { version: string };
    expect(await read(join(CHART, 'Chart.yaml'))).toMatchObject({ version, appVersion: version, name: RELEASE });
  });

  /** Values that do not go together, over those of `small`, and what the message must name. */
  const REFUSED: readonly (readonly [set: readonly string[], named: readonly string[]])[] = [
    [['rpc.secretName=""'], ['rpc.secretName', 'rpc.mtls.enabled', 'openssl rand -hex 32']],
    [['apiKeys.secretName=""'], ['apiKeys.secretName', 'apiKeys.insecure']],
    [['podMonitor.enabled=true'], ['podMonitor.tokenSecretName', 'openssl rand -hex 32']],
    [['decode.enabled=false'], ['enable prefill and decode, or colocated']],
    [['redis.enabled=false'], ['redis.enabled', 'store.url', 'store.secretName']],
    [['store.url="redis://redis:6379"'], ['redis.enabled', 'store.url']],
    [['redis.enabled=false', 'store.url="redis://a:1"', 'store.secretName="b"'], ['two stores']],
    [['shutdown.drainTimeoutMs=66000'], ['shutdown.drainTimeoutMs 66000', 'gateway.requestTimeoutMs 60000']],
    [['prefill.maxSurge=0'], ['prefill.maxSurge', 'prefill.maxUnavailable']],
    [['gpu.class="cuda12"'], ['model.precision fp32', 'int4-fp16']],
    [['bundle.source="pvc"'], ['bundle.pvc.claimName']],
    [['bundle.source="image"'], ['bundle.image.reference']],
    [['bundle.path=""'], ['bundle.path']],
    [['candidate.enabled=true', 'candidate.bundle.source="pvc"'], ['candidate.bundle.pvc.claimName']],
    [['prometheusRule.runbookUrl="wiki"'], ['/prometheusRule/runbookUrl']],
    [['autoscaling.kind="keda"'], ['autoscaling.prometheusUrl']],
    [['inferencePool.enabled=true'], ['inferencePool.endpointPicker.name']],
    [['decode.slots=0'], ['/decode/slots']],
    [['settings={"Queue":1}'], ["'Queue'"]],
  ];

  test('values that do not go together are refused with the value and the remedy', async () => {
    const file = join(PACKAGE_ROOT, 'test', 'goldens', 'chart', 'refusals.txt');
    const values = valuesFiles('small');
    const first = `SHA-256 of the chart ${await chartDigest(values)}`;
    const command = await helm();
    let text: string;
    if (command === undefined) text = await readFile(file, 'utf8');
    else {
      const messages: string[] = [];
      for (const [set] of REFUSED) {
        const refusal = await render(command, values, set).then(
          () => 'rendered',
          ({ stderr }: { stderr: string }) => /Error: [\s\S]*/.exec(stderr)?.[0] ?? stderr,
        );
        const told = refusal
          .replace(/\n+Use --debug[\s\S]*/, '')
          .replace(/execution error at \([^)]*\): /, '')
          .replace(/\s*\n\s*/g, ' ');
        messages.push(`${set.join(' ')}\n  ${told.trim()}`);
      }
      text = [first, ...messages, ''].join('\n');
      await expect(text).toMatchFileSnapshot(file);
    }
    const [digest, ...lines] = text.trimEnd().split('\n');
    expect(digest, `${file} is of another chart: ${HOW}`).toBe(first);
    for (const [i, [set, named]] of REFUSED.entries()) {
      expect(lines[2 * i]).toBe(set.join(' '));
      for (const name of named) expect(lines[2 * i + 1]).toContain(name);
    }
  });
});
