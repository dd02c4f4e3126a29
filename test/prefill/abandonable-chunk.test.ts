/** The decision whether to finish an abandoned chunk. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { BLOCK_TOKENS } from '../../services/lib/kv/prefix.ts';
import { isWorthFinishing } from '../../services/prefill/abandonable-chunk.ts';

const chain = (blocks: number, kind = 'a') => Array.from({ length: blocks }, (_, i) => `${kind}${i}`);

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
      expect(isWorthFinishing({ chain: chain(20), past, end }, next, computed)).toBe(
        spared > 0 && size - computed <= spared,
      );
    }),
  );
});

test('while no prompt waits, an abandoned chunk is finished unless its result could not be found again', () => {
  expect(isWorthFinishing({ chain: chain(2), past: 0, end: 40 }, undefined, 0)).toBe(true);
  expect(isWorthFinishing({ chain: chain(2), past: 32, end: 40 }, undefined, 0)).toBe(false);
  expect(isWorthFinishing({ chain: [], past: 0, end: 40 }, undefined, 0)).toBe(false);
});
