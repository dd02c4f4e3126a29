import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { differences, type Piece, samplesPage } from '../../../bench/quality/page.ts';
import { qualityResult } from '../../support/quality-result.ts';

const textOf = (pieces: readonly Piece[], ...kinds: Piece['kind'][]) =>
  pieces.flatMap(({ kind, text }) => (kinds.includes(kind) ? [text] : [])).join('');

describe('differences', () => {
  it('pieces put together give the text and the target', () => {
    const code = fc.array(fc.constantFrom('a', 'b', ' ', '\n', '(', 'é😀')).map((parts) => parts.join(''));
    fc.assert(
      fc.property(code, code, (text, target) => {
        const pieces = differences(text, target);
        expect(textOf(pieces, 'same', 'extra')).toBe(text);
        expect(textOf(pieces, 'same', 'missing')).toBe(target);
      }),
      { numRuns: 300 },
    );
  });

  it('words that both have are the same, and only those that differ are marked', () => {
    expect(differences('return self.total(x)', 'return self.price(x, y)')).toEqual([
      { kind: 'same', text: 'return self.' },
      { kind: 'missing', text: 'price' },
      { kind: 'extra', text: 'total' },
      { kind: 'same', text: '(x' },
      { kind: 'missing', text: ', y' },
      { kind: 'same', text: ')' },
    ]);
  });
});

describe('the page of samples', () => {
  it('holds each sample with its target, arms, chunks and what it is an example of, and runs nothing of theirs', () => {
    const page = samplesPage(qualityResult());
    expect(page.match(/<article/g)).toHaveLength(4);
    expect(page).toContain('<article class="differs helped">');
    expect(page).toContain('<article class="differs harmed">');
    expect(page).toContain('<article class="wrong-everywhere">');
    expect(page).toContain('money.py:1-5, score 0.500');
    expect(page).toContain('lacks context: over_budget');
    expect(page).toContain('<ins>&lt;script&gt;alert</ins>');
    expect(page.match(/<script>/g)).toHaveLength(1);
  });

  it('white space at the ends of a completion, which no score counts, is not marked', () => {
    const result = qualityResult();
    const indented = result.samples.map((sample) => ({
      ...sample,
      answers: Object.fromEntries(
        Object.entries(sample.answers).map(([arm, answer]) => [arm, { ...answer, text: `    ${sample.target}\n` }]),
      ),
    }));
    const page = samplesPage({ ...result, samples: indented });
    expect(page).toContain('<pre><span>target()</span></pre>');
    expect(page.match(/<(?:ins|del)>/g)).toHaveLength(2); // those of the legend
  });
});
