/** `llavacode evaluate` as a process of its own, on a real system with the model that ships. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { json } from 'node:stream/consumers';
import { afterAll, afterEach, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest';
import type { QualityResult } from '../../../bench/quality/result.ts';
import type { Artifact } from '../../../bench/report/artifact.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { benchmarkText, FILES, REPOSITORY } from '../../support/benchmark-rows.ts';
import { temporaryFolder } from '../../support/models.ts';
import { startTestSystem, type TestSystem, TINY_CODER } from '../../support/system.ts';

const CLI = join(PACKAGE_ROOT, 'dist/services/cli.js');
const TIMEOUT_MS = 600_000;
const dir = await temporaryFolder();

let system: TestSystem;
beforeAll(async () => {
  const store = `lmdb:${join(dir, 'store')}`;
  const whole = { chunkLines: 1000, chunkStride: 1000, defaultExcludes: false, fileVectors: true };
  // A busy machine must not cost the context: its time is not what this test is about.
  const gateway = { store, retrievalBudgetMs: 60_000 };
  system = await startTestSystem(TINY_CODER, { slots: 2 }, { gateway, indexer: { store, ...whole } });
  for (const format of ['cceval', 'repoeval', 'authors'] as const) {
    await writeFile(join(dir, `${format}.jsonl`), benchmarkText(format));
  }
  await mkdir(join(dir, 'repositories', REPOSITORY), { recursive: true });
  for (const [path, text] of Object.entries(FILES)) {
    await writeFile(join(dir, 'repositories', REPOSITORY, path), text);
  }
}, TIMEOUT_MS);
afterAll(() => system?.close(), TIMEOUT_MS);

const children: ChildProcess[] = [];
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
});

/** Budgets that suit five short samples. */
const SMALL = ['--prompt-tokens', '400', '--text-tokens', '200', '--max-tokens', '16', '--rewrite-tokens', '16'];

function start(name: string, ...options: string[]) {
  const given = ['--models', system.bundle.dir, '--data', join(dir, name), '--out', join(dir, name), ...SMALL];
  const child = spawn(process.execPath, [CLI, 'evaluate', ...given, ...options], { cwd: dir });
  children.push(child);
  let [output, errors] = ['', ''];
  child.stdout.on('data', (text) => (output += text));
  child.stderr.on('data', (text) => (errors += text));
  const exit = once(child, 'exit').then(([code, signal]) => ({ code, signal, output, errors }));
  return { child, exit };
}

const onSystem = (name: string, ...options: string[]) => start(name, '--url', system.url, ...options);
const benchmark = (format: string) => ['--benchmark', join(dir, `${format}.jsonl`)];

async function artifactOf(name: string): Promise<Artifact<QualityResult>> {
  return JSON.parse(await readFile(join(dir, name, 'evaluate.json'), 'utf8'));
}
const resultOf = async (name: string) => (await artifactOf(name)).result;

const lines = async (file: string) => (await readFile(file, 'utf8').catch(() => '')).split('\n').length - 1;

/** What does not depend on the clock. */
const withoutTimes = ({ figures, comparisons, samples }: QualityResult) => ({
  figures: figures.map(({ ttft: _, tpot: __, ...figure }) => figure),
  comparisons,
  samples: samples.map(({ answers, ...sample }) => ({
    ...sample,
    answers: Object.entries(answers).map(([arm, { ttftMs: _, tpotMs: __, ...answer }]) => [arm, answer]),
  })),
});

const KEY = 'sk-of-the-test';

/** A server of OpenAI's API that answers every chat alike, and notes what it was asked. */
async function summariser() {
  const keyFile = join(dir, 'key');
  await writeFile(keyFile, `${KEY}\n`);
  const asked: { path: string | undefined; key: string | undefined; model: unknown }[] = [];
  const server = createServer(async (request, response) => {
    const { url: path, method, headers } = request;
    const body = method === 'POST' ? ((await json(request)) as { model?: string; messages: unknown[] }) : undefined;
    asked.push({ path, key: headers.authorization, model: body?.model });
    const content = 'rounds prices, and reserves items of the stock';
    const answer =
      body === undefined
        ? { data: [{ id: 'first-model' }, { id: 'other-model' }] }
        : { choices: [{ message: { role: 'assistant', content } }] };
    response.setHeader('content-type', 'application/json').end(JSON.stringify(answer));
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  onTestFinished(() => void server.close());
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, keyFile, asked };
}

describe('an evaluation', () => {
  it('that is killed twice ends with the figures of one that was not, and its gate decides the exit code', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const answers = join(dir, 'killed', 'evaluate', 'evaluate.answers.jsonl');
    for (const kept of [4, 9]) {
      const { child, exit } = onSystem('killed', ...benchmark('cceval'));
      await vi.waitUntil(async () => (await lines(answers)) >= kept || child.exitCode !== null, {
        timeout: TIMEOUT_MS,
      });
      child.kill('SIGKILL');
      expect(await exit).toMatchObject({ signal: 'SIGKILL' });
    }
    await writeFile(answers, (await readFile(answers)).subarray(0, -30)); // the last line is cut short
    const ended = await onSystem('killed', ...benchmark('cceval')).exit;
    expect(ended).toMatchObject({ code: 0 });
    expect(await onSystem('whole', ...benchmark('cceval')).exit).toMatchObject({ code: 0 });
    const [killed, whole] = [await resultOf('killed'), await resultOf('whole')];
    expect(withoutTimes(killed)).toEqual(withoutTimes(whole));
    expect(await lines(answers)).toBe(16); // 15 answers, and the one that was cut short

    const [compressed, text] = [killed.samples[0]!.answers['compressed']!, killed.samples[0]!.answers['text']!];
    expect(compressed.softTokens).toBe(2);
    expect(text.chunks.map(({ path }) => path).sort()).toEqual(['money.py', 'stock.py']);
    expect(killed.samples.every(({ given, indexed }) => given === 2 && indexed === 2)).toBe(true);
    expect(new Set(Object.values(killed.samples[0]!.answers).map(({ ce }) => ce)).size).toBe(3);

    // Text changes four of five scores, all to a higher similarity; none is right in any arm.
    for (const [arm, against, by, exitCode, verdict] of [
      ['text', 'compressed', 'es', 0, 'better'],
      ['compressed', 'text', 'es', 1, 'worse'],
      ['compressed', 'off', 'em', 1, 'not shown'],
    ] as const) {
      const gate = ['--gate-arm', arm, '--require-better-than', against, '--gate-by', by];
      const { code, output, errors } = await onSystem('killed', ...benchmark('cceval'), ...gate).exit;
      const { gate: found } = await resultOf('killed');
      expect(found!.by).toBe(by);
      expect([arm, against, code]).toEqual([arm, against, exitCode]);
      if (exitCode === 1) expect(errors).toContain(`--require-better-than ${against}: ${arm} is ${verdict}`);
      const table = (text: string) => text.slice(text.indexOf('| Benchmark'), text.indexOf('- 5 of 5'));
      expect(table(output)).toBe(table(ended.output)); // nothing was asked for again, times included
    }
    expect(await readFile(join(dir, 'killed', 'evaluate.html'), 'utf8')).toContain('money.py:1-5');
    expect(await readFile(join(dir, 'killed', 'quality.svg'), 'utf8')).toContain('<svg');
  });

  it('searches an index of the repository, without the file with the gap, and rewrites what is found', {
    timeout: TIMEOUT_MS,
  }, async () => {
    const index = ['--context', 'index', '--repositories', join(dir, 'repositories'), '--samples', '2'];
    const all = 'off,text,mixed,compressed,compressed-files,pruned,summary,typed';
    const { url, keyFile, asked } = await summariser();
    const summaries = ['--summarizer', `${url}/v1/`, '--summarizer-key-file', keyFile];
    const arms = ['--arms', all, '--text-chunks', '1', '--retrievers', 'bm25', ...summaries];
    const { code, errors } = await onSystem('index', ...benchmark('repoeval'), ...index, ...arms).exit;
    expect([code, errors]).toEqual([0, expect.anything()]);
    const { samples } = await resultOf('index');
    expect(samples).toHaveLength(2);
    for (const { answers, chunks } of samples) {
      expect(answers['text']!.chunks.length).toBeGreaterThan(0);
      expect(answers['text']!.chunks.map(({ path }) => path)).not.toContain('cart.py');
      expect(Object.values(chunks).join('\n')).toContain('def ');
      const mixed = answers['mixed']!;
      const best = answers['text']!.chunks[0]!;
      expect(mixed.chunks.filter(({ form }) => form === 'text')).toEqual([{ ...best, form: 'text' }]);
      expect(mixed.softTokens).toBe(mixed.chunks.length - 1);
      const [soft, withFiles] = [answers['compressed']!, answers['compressed-files']!];
      expect(withFiles.degraded).toBeNull();
      expect(withFiles.chunks).toEqual(soft.chunks);
      const files = new Set(soft.chunks.map(({ path }) => path)).size;
      expect(withFiles.softTokens - soft.softTokens).toBe(Math.min(3, files));
      for (const arm of ['pruned', 'summary', 'typed']) {
        const { rewritten, promptTokens } = answers[arm]!;
        expect(rewritten).not.toBe('');
        expect(promptTokens - answers['off']!.promptTokens).toBeLessThanOrEqual(16);
      }
    }
    const { settings } = await artifactOf('index');
    expect(settings).toMatchObject({ topK: 10, context: 'index' });
    for (const name of ['capacity', 'slots', 'summarizer', 'summarizerKeyFile'])
      expect(settings).not.toHaveProperty(name);
    const left = (await (await fetch(`${system.url}/v1/repos`)).json()) as { data: { repo: string }[] };
    expect(left.data.map(({ repo }) => repo)).toEqual([]);

    // The summariser has its key, and the model that it names first; what it writes is cut to the budget.
    expect(asked.map(({ key }) => key)).toEqual(asked.map(() => `Bearer ${KEY}`));
    const chats = asked.filter(({ path }) => path === '/v1/chat/completions');
    expect(chats.length).toBeGreaterThan(0);
    expect(chats.map(({ model }) => model)).toEqual(chats.map(() => 'first-model'));
    expect(samples[0]!.answers['summary']!.rewritten).toMatch(/^rounds prices/);

    // Answers are kept for the files that were searched, wherever they lie, and for the model of summaries.
    const kept = join(dir, 'index', 'evaluate', 'evaluate.answers.jsonl');
    const moved = join(dir, 'moved');
    const made = async (...options: string[]) => {
      const before = await lines(kept);
      const some = [...arms, '--arms', 'off,text,summary', '--repositories', moved, ...options];
      const { code, errors } = await onSystem('index', ...benchmark('repoeval'), ...index, ...some).exit;
      expect([code, errors]).toEqual([0, expect.anything()]);
      return (await lines(kept)) - before;
    };
    await cp(join(dir, 'repositories'), moved, { recursive: true });
    expect(await made()).toBe(0);
    expect(await made('--summarizer-model', 'other-model')).toBe(2);
    expect(asked.at(-1)).toMatchObject({ path: '/v1/chat/completions', model: 'other-model' });
    await writeFile(join(moved, REPOSITORY, 'stock.py'), `${FILES['stock.py']}\ndef restock(item): ...\n`);
    expect(await made()).toBe(4); // of two samples, all but what has no context
  });

  it("gives rewriters the chunks in the retriever's order, whatever order the benchmark has", {
    timeout: TIMEOUT_MS,
  }, async () => {
    const arms = ['--arms', 'off,text,typed', '--samples', '2'];
    const rows = benchmarkText('cceval').trimEnd().split('\n');
    const reversed = rows.map((row) => {
      const { crossfile_context: context, ...rest } = JSON.parse(row);
      return JSON.stringify({ ...rest, crossfile_context: { ...context, list: context.list.toReversed() } });
    });
    await writeFile(join(dir, 'reversed.jsonl'), reversed.map((row) => `${row}\n`).join(''));
    const rewritten: (string | null)[][] = [];
    for (const name of ['cceval', 'reversed']) {
      const { code, errors } = await onSystem(`order-${name}`, ...benchmark(name), ...arms).exit;
      expect([code, errors]).toEqual([0, expect.anything()]);
      const { samples } = await resultOf(`order-${name}`);
      rewritten.push(samples.map(({ answers }) => answers['typed']!.rewritten));
      const first = { 'money.py': /^[^\n]*round_price/, 'stock.py': /^[^\n]*reserve_item/ } as Record<string, RegExp>;
      for (const { answers } of samples) {
        expect(answers['typed']!.rewritten).toMatch(first[answers['text']!.chunks[0]!.path]!);
      }
    }
    expect(rewritten[1]).toEqual(rewritten[0]);
  });

  it("starts a system of its own where no other is named, and takes the authors' fields for rewritten context", {
    timeout: TIMEOUT_MS,
  }, async () => {
    const arms = ['--arms', 'off,compressed,zip,given-summary', '--samples', '1', '--capacity', '1024'];
    const { code, errors } = await start('own', ...benchmark('authors'), ...arms).exit;
    expect([code, errors]).toEqual([0, expect.anything()]);
    const [sample] = (await resultOf('own')).samples;
    expect(sample!.answers['compressed']!.softTokens).toBe(2);
    const { settings } = await artifactOf('own');
    expect(settings).toMatchObject({ capacity: 1024, slots: 8, topK: 10 });
    expect(settings).not.toHaveProperty('precision'); // the bundle has one
    expect(sample!.answers['zip']!.rewritten).toBe('def round_price reserve_item');
    expect(sample!.answers['given-summary']!.rewritten).toBe('rounds prices');
  });

  it.each([
    [['--prompt-tokens', '100000'], /config_invalid: --prompt-tokens 100000, .*and the system holds \d+/],
    [['--require-better-than', 'typed'], /config_invalid: --require-better-than typed is not among the arms/],
    [['--arms', 'zip'], /sample_invalid: .*cceval\.jsonl:1: the arm zip needs the field/],
    [['--arms', 'summary'], /config_invalid: --arms summary: the bundle .* has no chat_template.*--summarizer/],
    [['--arms', 'soft'], /soft must be one of off, text, mixed, compressed/],
    [['--arms', 'compressed-files'], /config_invalid: --arms compressed-files: .*--context index/],
    [['--beside', 'nowhere.json'], /--beside nowhere\.json/],
    [['--summarizer', 'http://h'], /config_invalid: --summarizer http:\/\/h changes nothing without summary in --arms/],
    [
      ['--arms', 'off,summary', '--summarizer-model', 'm', '--summarizer-key-file', 'k'],
      /config_invalid: --summarizer-model m, --summarizer-key-file k changes nothing without --summarizer/,
    ],
  ])('with %j is refused in words', { timeout: TIMEOUT_MS }, async (options, message) => {
    const { code, errors } = await onSystem('refused', ...benchmark('cceval'), ...options).exit;
    expect(code).toBeGreaterThan(0);
    expect(errors).toMatch(message);
  });
});
