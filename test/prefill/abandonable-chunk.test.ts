/** The decision whether to finish an abandoned chunk. */
import fc from 'fast-check';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { BLOCK_TOKENS, type PromptChain } from '../../services/lib/kv/prefix.ts';
import { AbandonableChunk, type NextInLine } from '../../services/prefill/abandonable-chunk.ts';

let nowMs = 0;
beforeEach(() => {
  vi.spyOn(performance, 'now').mockImplementation(() => nowMs);
});
afterEach(() => {
  vi.restoreAllMocks();
});

const chain = (blocks: number, kind = 'a'): PromptChain => Array.from({ length: blocks }, (_, i) => `${kind}${i}`);

/** Whether a chunk of [past, end) goes on after its caller hung up. @param computed tokens that are done by then. */
function isFinished(
  prompt: { chain: PromptChain; past: number; end: number },
  next: NextInLine,
  { computed = 0, contended = false } = {},
): boolean {
  const caller = new AbortController();
  const chunk = new AbandonableChunk({ ...prompt, signal: caller.signal });
  nowMs += 1000 * computed;
  chunk.reconsider(next, contended, 1);
  expect(chunk.signal.aborted).toBe(false); // nobody hung up yet
  caller.abort(new Error('hung up'));
  chunk.reconsider(next, contended, 1);
  if (chunk.signal.aborted) expect(chunk.signal.reason).toBe(caller.signal.reason);
  return !chunk.signal.aborted;
}

test('finishing an abandoned chunk never takes longer than it saves the next prompt', () => {
  const cases = fc.record({
    blocks: fc.nat(20),
    own: fc.nat(20),
    past: fc.nat(200),
    size: fc.integer({ min: 1, max: 200 }),
    computed: fc.nat(300),
  });
  fc.assert(
    fc.property(cases, ({ blocks, own, past, size, computed }) => {
      const next = { chain: [...chain(blocks), ...chain(own, 'b')] };
      const end = past + size;
      const spared = Math.min(blocks * BLOCK_TOKENS, end) - past;
      expect(isFinished({ chain: chain(20), past, end }, next, { computed })).toBe(
        spared > 0 && size - computed <= spared,
      );
    }),
  );
});

test('while no prompt waits, an abandoned chunk is finished unless its result could not be found again', () => {
  expect(isFinished({ chain: chain(2), past: 0, end: 40 }, undefined)).toBe(true);
  expect(isFinished({ chain: chain(2), past: 32, end: 40 }, undefined)).toBe(false);
  expect(isFinished({ chain: [], past: 0, end: 40 }, undefined)).toBe(false);
});

test('an abandoned chunk is never finished while something else wants the engine', () => {
  expect(isFinished({ chain: chain(2), past: 0, end: 40 }, undefined, { contended: true })).toBe(false);
});
