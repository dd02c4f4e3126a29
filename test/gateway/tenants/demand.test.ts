import { expect, test } from 'vitest';
import { COMPLETION_DEFAULTS, type CompletionRequest } from '../../../services/gateway/request.ts';
import { demandOf } from '../../../services/gateway/tenants/demand.ts';

const CAPACITY = 2_048;
const request = (more: Partial<CompletionRequest>): CompletionRequest => ({
  ...COMPLETION_DEFAULTS,
  prompts: ['x'.repeat(400)],
  ...more,
});
const reserved = (more: Partial<CompletionRequest>, tokensPerMinute = 1e6) =>
  demandOf(request(more), { tokensPerMinute }, CAPACITY).reserved;

test('the output of all sequences is reserved, and the prompts: their ids, or a quarter of their characters', () => {
  expect(reserved({ maxTokens: 10 })).toBe(100 + 10);
  expect(reserved({ maxTokens: 10, n: 2, bestOf: 3 })).toBe(100 + 30);
  expect(reserved({ maxTokens: 10, prompts: [[1, 2, 3], 'abcd'], bestOf: 2 })).toBe(3 + 1 + 40);
  expect(reserved({ maxTokens: 10, suffix: 'x'.repeat(40) })).toBe(100 + 10 + 10);
  expect(reserved({ maxTokens: 10, truncatePromptTokens: 7 })).toBe(7 + 10);
  expect(reserved({ maxTokens: 0, prompts: [''] })).toBe(1);
  const rag = { repo: 'r', mode: 'text', topK: 3, path: undefined, retriever: undefined, maxTextTokens: 500 } as const;
  expect(reserved({ maxTokens: 10, rag })).toBe(100 + 500 + 10);
  expect(reserved({ maxTokens: 10, rag: { ...rag, mode: 'compressed' } })).toBe(100 + 3 + 10);
  expect(reserved({ maxTokens: 10, rag: { ...rag, mode: 'off' } })).toBe(100 + 10);
});

test('soft tokens are reserved for each chunk as many as it has, and one for each file', () => {
  const rag = { repo: 'r', mode: 'compressed', topK: 3, path: undefined, retriever: undefined } as const;
  const asked = request({ maxTokens: 10, rag: { ...rag, maxTextTokens: 500, fileTokens: 2 } });
  expect(demandOf(asked, { tokensPerMinute: 1e6 }, CAPACITY, 4).reserved).toBe(100 + 3 * 4 + 2 + 10);
});

test('nobody reserves more than a slot holds, for a prompt or for a sequence', () => {
  expect(reserved({ maxTokens: 1, prompts: ['x'.repeat(1e6)] })).toBe(CAPACITY + 1);
  expect(reserved({ maxTokens: 1e9, prompts: [[1]] })).toBe(CAPACITY + 1);
});

test('an estimate keeps nobody out for good, but what a request can take for certain does', () => {
  expect(reserved({ maxTokens: 10 }, 50)).toBe(50);
  const refused = (more: Partial<CompletionRequest>) => () => reserved({ prompts: [[1, 2]], ...more }, 1_000);
  expect(refused({ maxTokens: 998 })).not.toThrow();
  expect(refused({ maxTokens: 999 })).toThrowError(
    expect.objectContaining({ code: 'invalid_request', limit: 'tokens-per-minute' }),
  );
  expect(refused({ bestOf: 64, maxTokens: 2_000 })).toThrow(
    'the prompts and 64 sequences (prompts × best_of) of max_tokens 2000 may take 128002 tokens, and the tenant has ' +
      '1000 a minute (tokens_per_minute)',
  );
});

test('a request of more sequences than its tenant may ever have in flight is told both numbers', () => {
  const ask = (bestOf: number) => demandOf(request({ bestOf, prompts: ['a', 'b'] }), { maxInflight: 8 }, CAPACITY);
  expect(ask(4)).toEqual({ sequences: 8, reserved: 0 });
  expect(() => ask(5)).toThrowError(
    expect.objectContaining({
      code: 'invalid_request',
      limit: 'max-inflight',
      message: 'prompts × best_of are 10 sequences, and the tenant may have 8 in flight (max_inflight)',
    }),
  );
});
