/** Where a sequence's next tokens are found. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DraftIndex, type Drafts, MOST_DRAFT_TOKENS } from '../../../services/decode/speculation/draft-index.ts';

const ids = fc.array(fc.nat(5), { maxLength: 40 });

function indexOf(drafts: Partial<Drafts>, output: readonly number[], anchored = true): DraftIndex {
  const index = new DraftIndex({ texts: [], before: [], ...drafts }, 100_000, anchored);
  for (const id of output) index.push(id);
  return index;
}

describe('what is found', () => {
  test('what follows the end of the text in another text is the draft', () => {
    const texts = [{ source: 'chunk', ids: [9, 1, 2, 3, 4, 5, 6] }] as const;
    const draft = indexOf({ texts, before: [7, 1, 2] }, [3]).draft(2);
    expect(draft).toEqual({ source: 'chunk', matched: 3, ids: [4, 5] });
  });

  test('a prediction is followed from its beginning, and again after a place that differs', () => {
    const texts = [{ source: 'prediction', ids: [1, 2, 3, 4, 5, 6, 7, 8] }] as const;
    const index = indexOf({ texts, before: [0] }, []);
    expect(index.draft(3)).toEqual({ source: 'prediction', matched: 0, ids: [1, 2, 3] });
    for (const id of [1, 2, 9, 5, 6]) index.push(id);
    expect(index.draft(3)).toMatchObject({ source: 'prediction', ids: [7, 8] });
  });

  test('where output of an earlier worker stands before it, a prediction is not taken from its beginning', () => {
    const texts = [{ source: 'prediction', ids: [1, 2, 3] }] as const;
    expect(indexOf({ texts, before: [0] }, [], false).draft(3)).toBeUndefined();
  });

  test('of two places the one with the longer match is taken', () => {
    const texts = [
      { source: 'chunk', ids: [1, 2, 3, 4, 5] },
      { source: 'recent', ids: [8, 4, 9] },
    ] as const;
    expect(indexOf({ texts, before: [1, 2, 3] }, [4]).draft(1)).toEqual({ source: 'chunk', matched: 4, ids: [5] });
  });

  test('an output that repeats itself is followed beyond its own end', () => {
    const draft = indexOf({}, [1, 2, 3, 1, 2, 3, 1]).draft(7);
    expect(draft).toEqual({ source: 'output', matched: 4, ids: [2, 3, 1, 2, 3, 1, 2] });
  });

  test('what is no token of the model is never proposed', () => {
    const texts = [{ source: 'prediction', ids: [1, 2, 100_000, 3, -7, 4] }] as const;
    expect(indexOf({ texts }, []).draft(7)).toEqual({ source: 'prediction', matched: 0, ids: [1, 2] });
    expect(indexOf({ texts }, [3]).draft(7)).toBeUndefined();
    expect(indexOf({ texts: [{ source: 'prediction', ids: [-7, 1] }] }, []).draft(7)).toBeUndefined();
  });

  test('texts beyond the limit are left out, the least trusted first', () => {
    const long = Array.from({ length: MOST_DRAFT_TOKENS - 5 }, (_, i) => 100 + i);
    const texts = [
      { source: 'recent', ids: [1, 2, 3] },
      { source: 'prompt', ids: long },
      { source: 'chunk', ids: [4, 5, 6] },
    ] as const;
    const index = indexOf({ texts }, [1, 2]);
    for (let turn = 0; turn < 20; turn++) index.draft(1); // places are noted turn by turn
    expect(index.draft(1)).toBeUndefined();
    index.push(4);
    expect(index.draft(1)).toEqual({ source: 'chunk', matched: 1, ids: [5] });
  });
});

test('a draft is always text that follows a match of the stated length', () => {
  const source = fc.constantFrom('prediction', 'chunk', 'recent', 'prompt');
  const text = fc.record({ source, ids }) as fc.Arbitrary<Drafts['texts'][number]>;
  fc.assert(
    fc.property(
      fc.array(text, { maxLength: 4 }),
      ids,
      ids,
      fc.integer({ min: 1, max: 7 }),
      (texts, before, out, most) => {
        const index = indexOf({ texts, before }, []);
        const output: number[] = [];
        for (const id of [...out, 0]) {
          const draft = index.draft(most);
          if (draft !== undefined) {
            expect(draft.ids.length).toBeGreaterThan(0);
            expect(draft.ids.length).toBeLessThanOrEqual(most);
            const own = [...before, ...output];
            const end = own.slice(own.length - draft.matched);
            // A match in the output itself may go on with what it has proposed.
            const places = draft.source === 'output' || draft.source === 'prompt' ? [[...own, ...draft.ids]] : [];
            const all = [...places, ...texts.filter((each) => each.source === draft.source).map((each) => each.ids)];
            expect(all.some((each) => contains(each, [...end, ...draft.ids]))).toBe(true);
          }
          index.push(id);
          output.push(id);
        }
      },
    ),
  );
});

const contains = (whole: readonly number[], part: readonly number[]) =>
  whole.some((_, at) => part.every((id, i) => whole[at + i] === id)) || part.length === 0;
