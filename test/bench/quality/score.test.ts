/** Scores of an evaluation are those of the goldens: of lines, of CrossCodeEval's statements, and of CodeBLEU. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Scorer } from '../../../bench/quality/score.ts';
import { evaluationCases } from '../../support/evaluation-goldens.ts';

interface LineCase {
  readonly id: string;
  readonly prediction: string;
  readonly groundtruth: string;
  readonly expected: { readonly authors: { readonly prediction: string; readonly em: number; readonly es: number } };
}
interface StatementCase {
  readonly id: string;
  readonly prompt: string;
  readonly completion: string;
  readonly groundtruth: string;
  readonly expected: { readonly em: number; readonly es: number; readonly id_em: number; readonly id_f1: number };
}

let scorer: Scorer;
beforeAll(async () => {
  scorer = await Scorer.load('python', 'codexglue');
});
afterAll(() => scorer.dispose());

describe.each(evaluationCases<LineCase>('line'))('golden $id', ({ prediction, groundtruth, expected: { authors } }) => {
  it("is cut to the target's lines and has the authors' scores; the paper's are those of the cut text", () => {
    const { text, scores } = scorer.score('', prediction, groundtruth);
    expect(text).toBe(authors.prediction);
    expect(scores.authorsExactMatch).toBe(authors.em);
    expect(scores.authorsEditSimilarity).toBeCloseTo(authors.es, 12);
    expect(scores.exactMatch).toBe(authors.prediction.trim() === groundtruth.trim() ? 1 : 0);
  });
});

describe.each(evaluationCases<StatementCase>('cceval'))('golden $id', (given) => {
  it('has the scores of its statement and names', () => {
    const { scores } = scorer.score(given.prompt, given.completion, given.groundtruth);
    expect([scores.statementMatch, scores.nameMatch]).toEqual([given.expected.em, given.expected.id_em]);
    expect(scores.statementSimilarity).toBeCloseTo(given.expected.es, 12);
    expect(scores.nameF1).toBeCloseTo(given.expected.id_f1, 12);
  });
});

it('the corpus has one CodeBLEU, from what each answer counts', () => {
  const same = scorer.score('', 'return compute_total(items, price)\nmore', 'return compute_total(items, price)');
  const other = scorer.score('', 'pass', 'return compute_total(items, price)');
  const of = (...scored: { readonly counts: typeof same.counts }[]) =>
    scorer.codeBleu.score(scored.map(({ counts }) => counts)).codeBleu;
  expect(of(same)).toBeGreaterThan(of(same, other));
  expect(of(same, other)).toBeGreaterThan(of(other));
});
