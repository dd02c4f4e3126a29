/** The rows of a pass: each continuation follows the prompt as if there were no other. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { attentionBias, layOut } from '../../../training/step/rows.ts';

const ids = (least: number) => fc.array(fc.nat(99), { minLength: least, maxLength: 6 });
const samples = fc.record({ promptIds: ids(1), targetIds: ids(1), rolloutIds: ids(0), distilledIds: ids(0) });

test('what a scored row sees is the prompt and what precedes its token in the same continuation', () => {
  fc.assert(
    fc.property(samples, ({ promptIds, targetIds, rolloutIds, distilledIds }) => {
      const sample = { name: 'sample', promptIds, softPositions: [], targetIds };
      const { ids, scored, targets, positions } = layOut(sample, rolloutIds, distilledIds);
      const bias = attentionBias(sample, rolloutIds, distilledIds);
      const continuations = [targetIds, rolloutIds, distilledIds].flatMap((ids) =>
        ids.map((_, i) => [ids, i] as const),
      );
      expect(scored).toHaveLength(continuations.length);
      for (const [at, [continuation, i]] of continuations.entries()) {
        const row = scored[at]!;
        const seen = [...ids.keys()].filter((column) => column <= row && bias[row * ids.length + column] === 0);
        expect(seen.map((column) => ids[column])).toEqual([...promptIds, ...continuation.slice(0, i)]);
        expect(seen.map((column) => positions[column])).toEqual(seen.map((_, position) => position));
        expect(targets[at]).toBe(continuation[i]);
      }
    }),
  );
});
