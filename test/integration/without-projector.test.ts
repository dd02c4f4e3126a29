/** A model without projector, from export to completions, as real processes: repository context works as text. */
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { jsonOfFiles } from '../support/archives.ts';
import type { Answer } from '../support/fake-gateway.ts';
import { TINY_CODER } from '../support/system.ts';

const CLI = join(PACKAGE_ROOT, 'dist', 'services', 'cli.js');
const SHOP = join(PACKAGE_ROOT, 'examples', 'shop');
/** Real processes that load a model take long on a machine that is busy. */
const LIMIT = 300_000;
const LACK = 'no encoder and projector: compressed context is off; repository context works as text';

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-bare-'));
  await mkdir(join(dir, 'checkpoint'));
  for (const name of await readdir(TINY_CODER)) {
    if (name !== 'projector') await symlink(join(TINY_CODER, name), join(dir, 'checkpoint', name));
  }
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const bundle = () => join(dir, 'bundle');

/** Starts a command, and collects what it says. */
function start(words: readonly string[]) {
  const said = { text: '' };
  const child = execFile(process.execPath, [CLI, ...words]);
  for (const stream of [child.stdout!, child.stderr!]) {
    stream.on('data', (text) => {
      said.text += text;
    });
  }
  const exited = new Promise<number | null>((resolve) => child.once('close', resolve));
  return { child, said, exited };
}

async function run(words: readonly string[]) {
  const { said, exited } = start(words);
  return { code: await exited, said: said.text };
}

async function ask(url: string, body?: object | Buffer, method = 'POST') {
  const payload = Buffer.isBuffer(body) ? new Uint8Array(body) : body && JSON.stringify(body);
  const answer = await fetch(url, { method, body: payload, headers: { 'content-type': 'application/json' } });
  return { status: answer.status, body: (await answer.json()) as Partial<Answer> };
}

test('a model without projector is exported, indexed and served, with repository context as text', {
  timeout: LIMIT,
}, async (context) => {
  const exported = await run(['export', '--llm', join(dir, 'checkpoint'), '--to', bundle()]);
  expect(exported).toMatchObject({ code: 0, said: expect.stringContaining(LACK) });

  const data = join(dir, 'data');
  // A busy machine must not cost the context: its time is not what this test is about.
  const patient = ['--retrieval-budget-ms', '60000'];
  const up = start(['up', '--port', '0', '--data', data, '--model', bundle(), '--index', SHOP, ...patient]);
  context.onTestFinished(async () => {
    up.child.kill('SIGTERM');
    await up.exited;
  });
  const ended = up.exited.then((code) => {
    throw new Error(`up ended with ${code}: ${up.said.text}`);
  });
  ended.catch(() => {});
  const serving = vi.waitUntil(() => /Serving at (\S+\d)/.exec(up.said.text)?.[1], { timeout: LIMIT, interval: 50 });
  const url = (await Promise.race([serving, ended])) as string;
  expect(up.said.text).toContain(LACK);
  expect(up.said.text).toMatch(/shop: \d+ chunks \(\d+ stored as text/);

  const prompt = 'def hold(inventory, cart, now):\n    reservation = ';
  const complete = (rag: object) => ask(`${url}/v1/completions`, { prompt, suffix: '', max_tokens: 2, rag });
  for (const mode of [undefined, 'compressed', 'text']) {
    const { status, body } = await complete({ repo: 'shop', mode });
    expect(status).toBe(200);
    expect(body.rag).toMatchObject({ mode: 'text', index_version: expect.any(String) });
    expect(body.rag?.chunks.length).toBeGreaterThan(0);
    expect(body.rag?.degraded).toBeUndefined();
    expect(body.usage?.prompt_tokens_details.soft_tokens).toBe(0);
  }

  const files = { 'a.py': 'def hold_everything(inventory, cart, now):\n    return inventory.hold(cart, now)\n' };
  const put = await ask(`${url}/v1/repos/uploaded`, jsonOfFiles(files), 'PUT');
  expect(put).toMatchObject({ status: 200, body: { chunks: 1, fingerprint: 'none' } });
  expect(await ask(`${url}/v1/repos/uploaded`, undefined, 'GET')).toMatchObject({
    status: 200,
    body: { stale: false, modes: ['text'], retrievers: ['jaccard', 'bm25'] },
  });
  const found = await complete({ repo: 'uploaded', retriever: 'bm25' });
  expect(found.body.rag).toMatchObject({ mode: 'text', chunks: [{ path: 'a.py' }] });
  const refused = await complete({ repo: 'uploaded', retriever: 'dense' });
  expect(refused).toMatchObject({ status: 400, body: { error: { code: 'invalid_request', param: 'rag.retriever' } } });

  const store = `lmdb:${join(dir, 'other')}`;
  const indexing = ['--model', bundle(), '--store', store, '--retriever', 'fused'];
  for (const words of [
    ['index', '--name', 'shop', '--path', SHOP, ...indexing],
    ['indexer', '--port', '0', ...indexing],
    ['up', '--port', '0', '--data', join(dir, 'second'), ...indexing],
  ]) {
    const { code, said } = await run(words);
    expect(code).not.toBe(0);
    expect(said).toContain(`--retriever fused compares embeddings, and ${bundle()} has no encoder`);
  }
});
