/**
 * A model whose projector says four soft tokens per chunk, and an index with vectors of files, as real processes: what
 * comes out over HTTP is what the plain path gives for the same vectors in the same places.
 */
import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type CompletionBody, streamCompletion } from '../../services/client.ts';
import { atOnce } from '../../services/lib/async/turns.ts';
import { chunkFile } from '../../services/lib/rag/chunk.ts';
import { type ContextEncoder, loadContextEncoder } from '../../services/lib/rag/encode/encode.ts';
import { decodeHalves, encodeHalves } from '../../services/lib/rag/store/vector-codec.ts';
import { PromptBuilder } from '../../services/lib/text/prompt.ts';
import { choosePromptFormat } from '../../services/lib/text/prompt-format.ts';
import { loadTokenizer } from '../../services/lib/text/tokenizer.ts';
import { jsonOfFiles } from '../support/archives.ts';
import { PlainModel, startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

const PER_CHUNK = 4;
/** Real processes that load a model take long on a machine that is busy. */
const LIMIT = 300_000;
const CHUNKING = { chunkLines: 10, chunkStride: 5 };
const FILES = {
  'money.py': Array.from({ length: 14 }, (_, i) => `def money_${i}(amount): return round_price(amount, ${i})`).join(
    '\n',
  ),
  'stock.py': 'def reserve_item(item, amount):\n    return item.stock - amount',
};

let dir: string;
let system: TestSystem;
let plain: PlainModel;
let encoder: ContextEncoder & { dispose(): void };

/** The model that ships, with a projector that says how many soft tokens it was trained for. */
async function checkpoint(): Promise<string> {
  const to = join(dir, 'checkpoint');
  await mkdir(to);
  for (const name of await readdir(TINY_CODER)) {
    if (name !== 'projector') await symlink(join(TINY_CODER, name), join(to, name));
  }
  await cp(join(TINY_CODER, 'projector'), join(to, 'projector'), { recursive: true });
  const path = join(to, 'projector', 'config.json');
  const config = JSON.parse(await readFile(path, 'utf8'));
  await writeFile(path, JSON.stringify({ ...config, encoder: { ...config.encoder, soft_per_chunk: PER_CHUNK } }));
  return to;
}

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-several-'));
  const store = `lmdb:${join(dir, 'store')}`;
  // A busy machine must not cost the context: its time is not what this test is about.
  const gateway = { store, retrievalBudgetMs: 60_000, overlayBudgetMs: 60_000 };
  const indexer = { store, ...CHUNKING, fileVectors: true };
  system = await startTestSystem(await checkpoint(), { slots: 2, capacity: 1024 }, { gateway, indexer });
  plain = await PlainModel.load(system.bundle);
  encoder = await loadContextEncoder(system.bundle, { threads: 1 });
}, LIMIT);
afterAll(async () => {
  encoder?.dispose();
  plain?.dispose();
  await system?.close();
  await rm(dir, { recursive: true, force: true });
}, LIMIT);

/** Rounded as a store keeps them. */
const stored = (vector: Float32Array) => decodeHalves(encodeHalves(vector));

const PROMPT = 'total = round_price(amount, 3) + money_9(amount)\nleft = reserve_item(item, ';

async function ask(rag: CompletionBody['rag'] & object) {
  const body = { prompt: PROMPT, max_tokens: 12, temperature: 0, ignore_eos: true, return_token_ids: true, rag };
  const { tokenIds, usage, rag: found } = await streamCompletion(system.url, body, AbortSignal.timeout(LIMIT));
  return { tokenIds, soft: usage.prompt_tokens_details!.soft_tokens, found: found! };
}

test('chunks and files stand in a prompt as many soft tokens as they have, and give the output of the plain path', {
  timeout: LIMIT,
}, async () => {
  const payload = new Uint8Array(jsonOfFiles(FILES));
  const headers = { 'content-type': 'application/json' };
  const put = await fetch(`${system.url}/v1/repos/shop`, { method: 'PUT', body: payload, headers });
  expect(await put.json()).toMatchObject({ chunks: 3, embedded: 3 });
  const described = await (await fetch(`${system.url}/v1/repos/shop`)).json();
  const fingerprint = system.bundle.manifest.context!.fingerprint;
  expect(described).toMatchObject({ soft_per_chunk: PER_CHUNK, file_vectors: 2, stale: false, fingerprint });

  const { tokenIds, soft, found } = await ask({ repo: 'shop', mode: 'compressed', top_k: 2, file_tokens: 5 });
  expect(found.degraded).toBeUndefined();
  expect(found.chunks).toHaveLength(2);
  const paths = [...new Set(found.chunks.map(({ path }) => path))];
  expect(found.files).toEqual(paths.map((path) => ({ path })));
  expect(soft).toBe(2 * PER_CHUNK + paths.length);

  const chunks = Object.entries(FILES).flatMap(([path, text]) => chunkFile(path, text, CHUNKING));
  const encoded = await encoder.encode(chunks);
  const vectors = found.chunks.map(({ path, start_line }) => {
    const at = chunks.findIndex((chunk) => chunk.path === path && chunk.startLine === start_line);
    return stored(encoded[at]!.vector);
  });
  const means = paths.map((path) => {
    const own = encoded.flatMap(({ encoding }, i) => (chunks[i]!.path === path ? [encoding!] : []));
    return own[0]!.map((_, at) => own.reduce((sum, encoding) => sum + encoding[at]!, 0) / own.length);
  });
  const files = (await encoder.project(means)).map(stored);
  const tokenizer = await loadTokenizer(system.bundle.tokenizerDir);
  const builder = new PromptBuilder(tokenizer, choosePromptFormat(tokenizer, undefined, []));
  const context = { kind: 'soft', vectors, perChunk: PER_CHUNK, files } as const;
  const built = atOnce(builder.build({ prompt: PROMPT, context, capacity: 1024, maxTokens: 12 }));
  expect(await plain.greedy([...built.ids], 12, built.soft)).toEqual(tokenIds);
});

test('a chunk that an editor sends takes as many soft tokens as one of the index', { timeout: LIMIT }, async () => {
  const files = [
    { path: 'cart.py', text: 'def reserve_item_of_cart(item, amount): return reserve_item(item, amount)' },
  ];
  const body = { prompt: PROMPT, max_tokens: 1, rag: { mode: 'compressed', files, file_tokens: 1 } };
  const headers = { 'content-type': 'application/json' };
  const answer = await fetch(`${system.url}/v1/completions`, { method: 'POST', body: JSON.stringify(body), headers });
  expect(await answer.json()).toMatchObject({
    rag: { chunks: [{ path: 'cart.py', overlay: 'soft' }], files: [] },
    usage: { prompt_tokens_details: { soft_tokens: PER_CHUNK } },
  });
});
