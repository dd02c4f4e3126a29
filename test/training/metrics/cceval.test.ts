/** Scores of completions as CrossCodeEval computes them. */
import { afterAll, describe, expect, test } from 'vitest';
import { Cceval } from '../../../training/metrics/cceval.ts';
import { evaluationCases } from '../../support/evaluation-goldens.ts';

interface CcevalCase {
  readonly id: string;
  readonly prompt: string;
  readonly completion: string;
  readonly groundtruth: string;
  readonly expected: Readonly<Record<string, unknown>>;
}

const python = await Cceval.load('python');
const java = await Cceval.load('java');
afterAll(() => {
  python.dispose();
  java.dispose();
});

const cases = evaluationCases<CcevalCase>('cceval');

test('there are goldens of CrossCodeEval', () => expect(cases).toHaveLength(8));

test.each(cases)('golden $id has the scores of CrossCodeEval', ({ prompt, completion, groundtruth, expected }) => {
  const scores = python.score(prompt, completion, groundtruth);
  expect({
    statement: scores.statement,
    prediction: scores.prediction,
    target: scores.target,
    em: scores.exactMatch,
    fuzz: scores.fuzz,
    es: scores.editSimilarity,
    pred_ids: scores.predictionNames,
    target_ids: scores.targetNames,
    id_em: scores.nameMatch,
    id_precision: scores.namePrecision,
    id_recall: scores.nameRecall,
    id_f1: scores.nameF1,
  }).toEqual(expected);
});

describe('languages with brackets', () => {
  test('a completion ends at its first semicolon or bracket, and not at one that comes first of all', () => {
    expect(java.score('', 'foo(a); bar(b);', 'foo(a);')).toMatchObject({ statement: 'foo(a);', exactMatch: 1 });
    expect(java.score('', 'if (x) { y(); }', 'if (x) {').statement).toBe('if (x) {');
    expect(java.score('', '; foo(a);', '').statement).toBe('; foo(a);');
    expect(java.score('', 'no end', '').statement).toBe('no end');
  });

  test('names are the words that are no keywords of the language', () => {
    expect(java.score('', 'final var x = new Foo("a b", true);', '').predictionNames).toEqual(['x', 'Foo', 'true']);
  });

  test('precision, recall and F1 are those of the sets of names, and 0 where there are no names', () => {
    const scores = java.score('', 'f(a, a, b)', 'f(a, c, d)');
    expect(scores.namePrecision).toBeCloseTo(2 / 3, 12);
    expect(scores.nameRecall).toBe(0.5);
    expect(scores.nameF1).toBeCloseTo(4 / 7, 12);
    expect(java.score('', '', '')).toMatchObject({ namePrecision: 0, nameRecall: 0, nameF1: 0, nameMatch: 1 });
  });
});

describe('the code before a completion', () => {
  const file = (lines: number) => 'total = add(total, price[0])\n'.repeat(lines);
  const completion = 'a(\n  1)\nb = 2\nc = 3';

  test('may be a whole file of 300 KB: its statement ends where all of it parses', () => {
    const scores = python.score(file(10_000), completion, 'a(1)');
    expect(scores).toMatchObject({ statement: 'a(\n  1)', isUnparsed: false });
  });

  test('may be too long to be parsed: the completion stays uncut, and says so', () => {
    expect(python.score(file(200_000), completion, 'a(1)')).toMatchObject({ statement: completion, isUnparsed: true });
    // The parser that gave up serves the next one.
    expect(python.score('', completion, 'a(1)')).toMatchObject({ statement: 'a(\n  1)', isUnparsed: false });
  });
});
