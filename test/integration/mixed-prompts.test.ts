/**
 * Mixed prompts through whole systems, as real processes, on a model of 32-bit floats: at both ends of `text_chunks`
 * the output is that of the other modes, both deployments give the same, and the next keystroke reuses what was
 * computed.
 */
import { expect, test } from 'vitest';
import { jsonOfFiles } from '../support/archives.ts';
import { temporaryFolder } from '../support/models.ts';
import { startTestSystem, TINY_CODER } from '../support/system.ts';

/** Real processes that load a model take long on a machine that is busy. */
const LIMIT = 300_000;
const NAMES = ['rates', 'items', 'totals', 'stock'];
const FILES = Object.fromEntries(
  NAMES.map((name) => [`${name}.py`, `def ${name}_of(country, cart):\n    return cart.${name}[country]\n`]),
);
const BEFORE =
  'def total(country, cart):\n    net = items_of(country, cart)\n    rate = rates_of(country, cart)\n    return ';

interface Answer {
  readonly choices: readonly { readonly token_ids: number[] }[];
  readonly usage: { readonly prompt_tokens_details: { readonly cached_tokens: number; readonly soft_tokens: number } };
  readonly rag: {
    readonly mode: string;
    readonly chunks: readonly { readonly path: string; readonly form?: string }[];
  };
}

async function outputsOf(mode: 'disaggregated' | 'colocated') {
  const store = `lmdb:${await temporaryFolder()}`;
  // A busy machine must not cost the context: its time is not what this test is about.
  const gateway = { retrievalBudgetMs: 60_000, store };
  const system = await startTestSystem(TINY_CODER, { capacity: 1024 }, { mode, gateway, indexer: { store } });
  const send = async (method: string, path: string, body: object) => {
    const headers = { 'content-type': 'application/json' };
    const answer = await fetch(`${system.url}${path}`, { method, headers, body: JSON.stringify(body) });
    expect(answer.status).toBe(200);
    return (await answer.json()) as Answer;
  };
  const ask = (rag: object, more: object = {}) =>
    send('POST', '/v1/completions', {
      prompt: BEFORE,
      suffix: '\n',
      max_tokens: 12,
      temperature: 0,
      ignore_eos: true,
      return_token_ids: true,
      ...more,
      rag: { repo: 'shop', path: 'total.py', ...rag },
    });
  const idsOf = ({ choices }: Answer) => choices.map(({ token_ids }) => token_ids);
  try {
    await send('PUT', '/v1/repos/shop', JSON.parse(jsonOfFiles(FILES).toString()));
    const [compressed, text] = [await ask({ mode: 'compressed' }), await ask({ mode: 'text' })];
    const none = await ask({ mode: 'mixed', text_chunks: 0 });
    const all = await ask({ mode: 'mixed', text_chunks: NAMES.length });
    expect(idsOf(none)).toEqual(idsOf(compressed));
    expect(idsOf(all)).toEqual(idsOf(text));
    expect(none.usage.prompt_tokens_details.soft_tokens).toBe(NAMES.length);
    const mixed = await ask({ mode: 'mixed', text_chunks: 1 });
    expect(mixed.rag.chunks.map(({ form }) => form)).toEqual(['soft', 'soft', 'soft', 'text']);
    expect(mixed.usage.prompt_tokens_details.soft_tokens).toBe(3);
    const several = await ask({ mode: 'mixed', text_chunks: 1 }, { n: 2, seed: 5, temperature: 1 });
    const typed = await ask({ mode: 'mixed', text_chunks: 1 }, { prompt: `${BEFORE}net `, session: 'editor' });
    const next = await ask({ mode: 'mixed', text_chunks: 1 }, { prompt: `${BEFORE}net * `, session: 'editor' });
    expect(next.rag).toEqual(typed.rag);
    expect(next.usage.prompt_tokens_details.cached_tokens).toBeGreaterThan(60);
    return [compressed, text, mixed, several, next].map(idsOf);
  } finally {
    await system.close();
  }
}

test('mixed prompts give the same output in both deployments, and that of the other modes at both ends', {
  timeout: 2 * LIMIT,
}, async () => {
  const disaggregated = await outputsOf('disaggregated');
  expect(await outputsOf('colocated')).toEqual(disaggregated);
  const [compressed, text, mixed] = disaggregated.map((outputs) => outputs[0]!.join(' '));
  expect(new Set([compressed, text, mixed]).size).toBeGreaterThan(1); // context makes a difference here
});
