/**
 * Traces of real processes, received by a collector: one completion is one trace over all of them, what it shows adds
 * up to the request, and neither a collector that fails nor one that never answers is seen by a client.
 */
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { type ReceivedSpan, receiveTraces } from '../../bench/observability/collector.ts';
import { type CompletionBody, streamCompletion } from '../../services/client.ts';
import { openTracer } from '../../services/lib/process/otlp.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { asksForTraces, beginTrace, logTracing, startTracing } from '../../services/lib/process/tracing.ts';
import { tarOfFiles } from '../support/archives.ts';
import { temporaryFolder } from '../support/models.ts';
import { startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

const run = promisify(execFile);
const SECRET_WORD = 'quetzalcoatl';
const CLIENT_SPAN = '00f067aa0ba902b7';
const traceparent = (traceId: string, sampled = true) => ({
  traceparent: `00-${traceId}-${CLIENT_SPAN}-0${Number(sampled)}`,
});
const prompt = Array.from({ length: 300 }, (_, i) => (i * 7919) % 500);
const body: CompletionBody = { prompt, max_tokens: 250, temperature: 0, ignore_eos: true, return_token_ids: true };

const answers: { status: number | undefined } = { status: 200 };
const store = `lmdb:${join(await temporaryFolder(), 'store')}`;
let collector: Awaited<ReturnType<typeof receiveTraces>>;
let system: TestSystem;
beforeAll(async () => {
  collector = await receiveTraces(answers);
  vi.stubEnv('OTEL_EXPORTER_OTLP_ENDPOINT', collector.url);
  vi.stubEnv('OTEL_EXPORTER_OTLP_PROTOCOL', 'http/json');
  vi.stubEnv('OTEL_BSP_SCHEDULE_DELAY', '200');
  vi.stubEnv('OTEL_RESOURCE_ATTRIBUTES', 'deployment.environment.name=test');
  const workers = { slots: 4, capacity: 1024, drainTimeoutMs: 20_000, logLevel: 'debug' };
  system = await startTestSystem(TINY_CODER, workers, {
    prefill: 1,
    decode: 2,
    prefillOnly: { prefillChunkTokens: 32 },
    gateway: { store },
    indexer: { store },
  });
  vi.unstubAllEnvs();
});
afterAll(async () => {
  await system?.close();
  collector?.close();
});

const spansOf = (traceId: string) => collector.spans.filter((span) => span.traceId === traceId);
const rootOf = (traceId: string) => spansOf(traceId).find(({ name }) => name.startsWith('text_completion'));
/** Waits until the spans of a request are there: its root, and so many of the workers. */
async function traceOf(traceId: string, workerSpans: number): Promise<readonly ReceivedSpan[]> {
  await expect.poll(() => rootOf(traceId)?.name, { timeout: 20_000 }).toBeDefined();
  const ofWorkers = () => spansOf(traceId).filter(({ service }) => service !== 'llavacode-gateway').length;
  await expect.poll(ofWorkers, { timeout: 20_000 }).toBeGreaterThanOrEqual(workerSpans);
  return spansOf(traceId);
}

/** The share of a span's time that its children's spans cover together. */
function coverage(root: ReceivedSpan, spans: readonly ReceivedSpan[]): number {
  let [covered, until] = [0, root.startMs];
  for (const { startMs, endMs } of spans.filter(({ parentSpanId }) => parentSpanId === root.spanId).sort(byStart)) {
    const from = Math.max(until, startMs);
    if (endMs <= from) continue;
    covered += Math.min(endMs, root.endMs) - from;
    until = endMs;
  }
  return covered / (root.endMs - root.startMs);
}
const byStart = (a: ReceivedSpan, b: ReceivedSpan) => a.startMs - b.startMs;
const idOf = (digit: string) => digit.repeat(32);
const complete = (traceId: string, more: Partial<CompletionBody> = {}, onChunk = () => {}, sampled = true) =>
  streamCompletion(system.url, { ...body, ...more }, AbortSignal.timeout(40_000), {
    onChunk,
    headers: traceparent(traceId, sampled),
  });

describe('a completion', () => {
  test('is one trace over gateway, prefill and decode, whose steps cover 95 % of it and more', async () => {
    const traceId = idOf('a');
    const done = await complete(traceId);
    const spans = await traceOf(traceId, 8);
    const root = rootOf(traceId)!;
    expect(root).toMatchObject({
      name: 'text_completion tiny-coder',
      parentSpanId: CLIENT_SPAN,
      error: false,
      attributes: {
        'gen_ai.operation.name': 'text_completion',
        'gen_ai.request.model': 'tiny-coder',
        'gen_ai.request.max_tokens': 250,
        'gen_ai.request.temperature': 0,
        'gen_ai.response.id': done.id,
        'gen_ai.response.finish_reasons': ['length'],
        'gen_ai.usage.input_tokens': 300,
        'gen_ai.usage.output_tokens': 250,
        'http.route': '/v1/completions',
      },
    });
    expect(coverage(root, spans)).toBeGreaterThanOrEqual(0.95);
    const byId = new Map(spans.map((span) => [span.spanId, span]));
    /** Names from the root down to a span. */
    const pathOf = (span: ReceivedSpan): string => {
      const parent = byId.get(span.parentSpanId ?? '');
      const own = `${span.service.replace('llavacode-', '')}:${span.name}`;
      return parent === undefined ? own : `${pathOf(parent)} > ${own}`;
    };
    const top = 'gateway:text_completion tiny-coder';
    const paths = spans.map(pathOf);
    for (const path of [
      `${top} > gateway:queue`,
      `${top} > gateway:prefill`,
      `${top} > gateway:prefill > prefill:prefill > prefill:queue`,
      `${top} > gateway:prefill > prefill:prefill > prefill:compute`,
      `${top} > gateway:prefill > prefill:prefill > prefill:staged`,
      `${top} > gateway:decode > decode:decode > decode:queue`,
      `${top} > gateway:decode > decode:decode > decode:hand-over`,
      `${top} > gateway:decode > decode:decode > decode:steps`,
      `${top} > gateway:decode > decode:decode > prefill:kv pull`,
    ])
      expect(paths).toContain(path);
    const compute = spans.find(({ name }) => name === 'compute')!;
    expect(compute.events.filter(({ name }) => name === 'chunk')).toHaveLength(Math.ceil(300 / 32));
    expect(spans.find(({ name }) => name === 'kv pull')!.events.length).toBeGreaterThan(0);
  });

  test('that is continued elsewhere after its worker was lost shows both tries and the replay, in one trace', async () => {
    const traceId = idOf('b');
    let chunks = 0;
    let killed = Promise.resolve();
    const done = await complete(traceId, { prompt: prompt.slice(1) }, () => {
      if (++chunks === 3) killed = killTheBusyDecoder();
    });
    await killed;
    expect(done.tokenIds).toHaveLength(250);
    const spans = await traceOf(traceId, 8);
    const root = rootOf(traceId)!;
    expect(coverage(root, spans)).toBeGreaterThanOrEqual(0.95);
    expect(root.attributes).toMatchObject({ 'llavacode.replays': 1 });
    expect(root.events.find(({ name }) => name === 'replayed')?.attributes).toMatchObject({
      'error.type': expect.stringMatching(/^worker_/),
    });
    const tries = spans.filter(({ name, parentSpanId }) => name === 'decode' && parentSpanId === root.spanId);
    expect(tries.map(({ error }) => error).sort()).toEqual([false, true]);
    const workers = tries.map(({ attributes }) => attributes['server.address']);
    expect(new Set(workers).size).toBe(2);
  });

  test('whose caller does not sample it is not exported, and its trace goes on under the same id', async () => {
    await complete(idOf('c'), { max_tokens: 2 }, undefined, false);
    await complete(idOf('d'), { max_tokens: 2 });
    await traceOf(idOf('d'), 4);
    expect(spansOf(idOf('c'))).toEqual([]);
  });

  test('never shows text of the client or the model, and its id stands in every line that the gateway logs of it', async () => {
    const traceId = idOf('e');
    const done = await complete(traceId, { prompt: `const ${SECRET_WORD} = `, max_tokens: 20, stop: [SECRET_WORD] });
    await traceOf(traceId, 8);
    const shown = JSON.stringify(spansOf(traceId));
    expect(shown).not.toContain(SECRET_WORD);
    for (const word of done.text.split(/\W+/).filter(({ length }) => length > 8)) expect(shown).not.toContain(word);
    const logs = await Promise.all(
      ['gateway-0', 'prefill-0'].map((name) => readFile(join(system.dir, 'logs', `${name}.log`), 'utf8')),
    );
    for (const log of logs) expect(log).toContain(`"trace_id":"${traceId}"`);
  });

  test('that is refused is a span with its code, which is not an error of the server', async () => {
    const traceId = idOf('f');
    await expect(complete(traceId, { model: 'other' } as Partial<CompletionBody>)).rejects.toThrow();
    await traceOf(traceId, 0);
    expect(rootOf(traceId)).toMatchObject({
      error: false,
      attributes: { 'error.type': 'model_not_found', 'http.response.status_code': 404 },
    });
  });
});

async function killTheBusyDecoder(): Promise<void> {
  for (const { name, pid, metricsAddress } of system.processes.filter(({ name }) => name.startsWith('decode'))) {
    const text = await (await fetch(`http://${metricsAddress}/metrics`)).text();
    if (/^vllm:num_requests_running\{[^}]*\} 1$/m.test(text)) process.kill(pid!, 'SIGKILL');
    else expect(text, name).toContain('vllm:num_requests_running');
  }
}

test('an upload is one trace over gateway and indexer', async () => {
  const traceId = idOf('1');
  const response = await fetch(`${system.url}/v1/repos/traced`, {
    method: 'PUT',
    headers: { 'content-type': 'application/x-tar', ...traceparent(traceId) },
    body: await tarOfFiles({ 'a.ts': 'export const a = 1;\n' }),
  });
  expect(response.status).toBe(200);
  await expect
    .poll(
      () =>
        spansOf(traceId)
          .map(({ service }) => service)
          .sort(),
      { timeout: 20_000 },
    )
    .toEqual(['llavacode-gateway', 'llavacode-indexer']);
});

test('a completion with context shows the search, and below it the chunks that the indexer encodes', async () => {
  const traceId = idOf('3');
  const files = [{ path: 'b.ts', text: 'export function basket(a: number) {\n  return a + 1;\n}\n' }];
  const rag = { repo: 'traced', mode: 'compressed', top_k: 3, files };
  await complete(traceId, { prompt: 'const b = basket(', max_tokens: 2, rag } as Partial<CompletionBody>);
  await expect.poll(() => rootOf(traceId)?.name, { timeout: 20_000 }).toBeDefined();
  const retrieve = () => spansOf(traceId).find(({ name }) => name === 'retrieve');
  expect(retrieve()).toMatchObject({
    parentSpanId: rootOf(traceId)!.spanId,
    attributes: {
      'gen_ai.operation.name': 'retrieval',
      'gen_ai.retrieval.top_k': 3,
      'llavacode.rag.mode': 'compressed',
    },
  });
  const encode = () => spansOf(traceId).find(({ name }) => name === 'encode');
  await expect.poll(encode, { timeout: 20_000 }).toMatchObject({
    service: 'llavacode-indexer',
    parentSpanId: retrieve()!.spanId,
  });
});

test.each([503, undefined])('a collector that answers %s costs spans, and no request', async (status) => {
  answers.status = status;
  const traceId = idOf('2');
  const many = await Promise.all(Array.from({ length: 8 }, () => complete(traceId, { max_tokens: 4 })));
  expect(many.every(({ tokenIds }) => tokenIds.length === 4)).toBe(true);
  answers.status = 200;
});

describe('the variables of OpenTelemetry', () => {
  test('say whether there are traces', () => {
    const endpoint = { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://collector:4318' };
    expect(asksForTraces({})).toBe(false);
    expect(asksForTraces(endpoint)).toBe(true);
    expect(asksForTraces({ OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'http://collector:4318/v1/traces' })).toBe(true);
    expect(asksForTraces({ OTEL_TRACES_EXPORTER: 'otlp' })).toBe(true);
    expect(asksForTraces({ ...endpoint, OTEL_TRACES_EXPORTER: 'none' })).toBe(false);
    expect(asksForTraces({ ...endpoint, OTEL_SDK_DISABLED: 'true' })).toBe(false);
    expect(() => asksForTraces({ OTEL_TRACES_EXPORTER: 'zipkin' })).toThrow(/OTEL_TRACES_EXPORTER = zipkin/);
  });

  test.each([
    [{ OTEL_TRACES_SAMPLER: 'sometimes' }, /OTEL_TRACES_SAMPLER = sometimes/],
    [{ OTEL_TRACES_SAMPLER: 'traceidratio', OTEL_TRACES_SAMPLER_ARG: '2' }, /OTEL_TRACES_SAMPLER_ARG = 2/],
    [{ OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' }, /http\/protobuf/],
    [{ OTEL_BSP_SCHEDULE_DELAY: 'soon' }, /OTEL_BSP_SCHEDULE_DELAY = soon/],
  ])('that are wrong (%o) are named', (env, message) => {
    expect(() => openTracer('gateway', env, () => {})).toThrow(message);
  });

  test.each([
    ['always_off', undefined, 0],
    ['traceidratio', '0', 0],
    ['traceidratio', '1', 20],
    ['parentbased_always_off', undefined, 0],
    ['', undefined, 20],
  ])('%s (%s) samples %i of 20 traces', async (sampler, arg, sampled) => {
    const tracer = openTracer('gateway', { OTEL_TRACES_SAMPLER: sampler, OTEL_TRACES_SAMPLER_ARG: arg }, () => {});
    const spans = Array.from({ length: 20 }, () => tracer.begin('x', {}, { atMs: performance.now() }));
    expect(spans.filter(({ recorded }) => recorded)).toHaveLength(sampled);
    await tracer.close();
  });

  test('spans that wait are exported when a process stops, and a collector that is silent does not hold it up', async () => {
    const late: { status: number | undefined } = { status: 200 };
    const other = await receiveTraces(late);
    const env = { OTEL_EXPORTER_OTLP_ENDPOINT: other.url, OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json' };
    vi.stubEnv('OTEL_EXPORTER_OTLP_ENDPOINT', other.url);
    const stopped = async () => {
      await startTracing('gateway', env);
      const stop = logTracing({ info: () => {}, warn: () => {} });
      beginTrace('last', {}, { atMs: 1 })?.end(2);
      await stop();
    };
    await stopped();
    expect(other.spans.map(({ name, startMs, endMs }) => [name, Math.round(endMs - startMs)])).toEqual([['last', 1]]);
    late.status = undefined;
    await stopped();
    expect(other.spans).toHaveLength(1);
    other.close();
    vi.unstubAllEnvs();
  });

  test('without them a service loads nothing of OpenTelemetry beside the interface that prom-client knows', async () => {
    const list = `import { readFileSync } from 'node:fs';
      await import('./dist/services/gateway/main.js');
      const { startTracing } = await import('./dist/services/lib/process/tracing.js');
      await startTracing('gateway', process.env);
      const { createRequire } = await import('node:module');
      const loaded = Object.keys(createRequire(import.meta.url).cache);
      console.log(JSON.stringify(loaded.filter((path) => path.includes('@opentelemetry'))));`;
    const loaded = async (env: Record<string, string>) => {
      const { stdout } = await run(process.execPath, ['--input-type=module', '-e', list], { cwd: PACKAGE_ROOT, env });
      return JSON.parse(stdout) as string[];
    };
    const { PATH = '' } = process.env;
    expect((await loaded({ PATH })).filter((path) => !path.includes('/api/'))).toEqual([]);
    expect(await loaded({ PATH, OTEL_TRACES_EXPORTER: 'otlp' })).not.toEqual([]);
  });
});
