import { describe, expect, it } from 'vitest';
import type { GateMeasure } from '../../../bench/quality/command.ts';
import { rungsOf } from '../../../bench/quality/ladder.ts';
import { ceShare, gateOf, recovered, savingKept, verdictOf } from '../../../bench/quality/measure.ts';
import { Pace } from '../../../bench/quality/pace.ts';
import { gateText, QUALITY } from '../../../bench/quality/report.ts';
import type { ArmAnswer, QualityResult, SampleResult } from '../../../bench/quality/result.ts';
import { qualityResult } from '../../support/quality-result.ts';

describe('the figures of arms', () => {
  const result = qualityResult();
  const figures = (arm: string) => result.figures.find((each) => each.arm === arm)!;

  it('means, rates and medians are those of the samples', () => {
    expect(figures('text').scores.exactMatch.mean).toBe(0.5);
    expect(figures('compressed').scores.editSimilarity.mean).toBe((3 + 0.25) / 4);
    expect(figures('text').rates).toMatchObject({ resilience: 0.5, boost: 0.5, rightWithout: 2, wrongWithout: 2 });
    expect(figures('text').harmful).toBe(0.25);
    expect(figures('off').rates).toBeNull();
    expect(figures('text').ttft.median).toBe(151.5);
    expect(figures('text').degraded).toEqual({ over_budget: 1 });
  });

  it('every two arms are compared', () => {
    expect(result.comparisons.map(({ arm, against }) => `${arm}-${against}`)).toEqual([
      'text-off',
      'compressed-off',
      'compressed-text',
    ]);
    expect(result.comparisons[1]).toMatchObject({ exactMatch: { mean: 0.25 }, exactMatchP: 1, ce: { mean: -0.25 } });
  });

  it('a gate is better or worse where the interval of its measure does not hold 0, and else not shown', () => {
    const withAnswers = (compressed: readonly Partial<ArmAnswer>[]) =>
      result.samples.map((sample, i) => ({
        ...sample,
        answers: { ...sample.answers, compressed: { ...sample.answers['compressed']!, ...compressed[i] } },
      }));
    const ceBy = (...differences: number[]) =>
      withAnswers(differences.map((difference, i) => ({ ce: result.samples[i]!.answers['off']!.ce + difference })));
    const verdict = (samples: readonly SampleResult[], by: GateMeasure = 'ce') =>
      verdictOf(gateOf('compressed', 'off', by, samples));
    expect(verdict(ceBy(-0.5, -0.4, -0.6, -0.5))).toBe('better'); // a lower cross-entropy
    expect(verdict(ceBy(0.5, 0.4, 0.6, 0.5))).toBe('worse');
    expect(verdict(ceBy(-3, 0.5, 0.4, 0.6))).toBe('not shown'); // its mean alone is better
    expect(verdict(result.samples)).toBe('not shown'); // one sample of four
    const scored = (right: number, more: number) =>
      withAnswers(
        result.samples.map(({ answers }) => {
          const { scores } = answers['off']!;
          return { scores: { ...scores, exactMatch: right, editSimilarity: scores.editSimilarity + more } };
        }),
      );
    expect(verdict(scored(0, -0.1), 'es')).toBe('worse');
    expect(verdict(scored(0, 0.1), 'es')).toBe('better'); // a higher similarity
    expect(verdict(scored(1, 0), 'es')).toBe('not shown');
    expect(verdict(scored(1, 0), 'em')).toBe('not shown'); // two of four were right
  });

  it('a gate says what it compared, in which unit, and what to do where nothing is shown', () => {
    const gate = (by: GateMeasure | undefined, mean: number) =>
      gateText({ arm: 'a', against: 'b', ...(by && { by }), difference: { mean, low: mean - 0.1, high: mean + 0.1 } });
    expect(gate('ce', -0.2)).toBe('a is better than b: CE differs by −0.200 [−0.300, −0.100] nats (lower is better)');
    expect(gate('em', -0.2)).toBe('a is worse than b: EM differs by −20.00 [−30.00, −10.00] points');
    expect(gate(undefined, 0.2)).toMatch(/^a is better than b: the mean of EM and ES differs by \+20\.00 /);
    expect(gate('es', 0.05)).toMatch(/^a is not shown to be better than b: ES .*; .*more samples/);
  });

  it('the share of the gain of text is known only where text gains', () => {
    expect(recovered(result.figures, 'compressed', 'exactMatch')).toBeNull();
    const gaining = result.figures.map((each) => {
      const mean = { off: 0.4, text: 0.6, compressed: 0.5 }[each.arm]!;
      return { ...each, scores: { ...each.scores, exactMatch: { mean, low: 0, high: 1 } } };
    });
    expect(recovered(gaining, 'compressed', 'exactMatch')).toBeCloseTo(0.5);
    const named = { text: 'mixed', compressed: 'compressed', off: 'off' } as Record<string, string>;
    const withoutText = gaining.map((each) => ({ ...each, arm: named[each.arm]! }));
    expect(recovered(withoutText, 'mixed', 'exactMatch')).toBeNull();
  });

  it('the saving kept is measured between text and no context', () => {
    expect(savingKept(timed({ off: 100, text: 300, compressed: 130 }).figures, 'compressed')).toBeCloseTo(0.85);
    expect(savingKept(timed({ off: 100, text: 100, compressed: 100 }).figures, 'compressed')).toBeNull();
  });

  it('a goal is judged by the share of text’s gain in cross-entropy, and by all of its interval', () => {
    const goals = (shares: readonly number[]) => {
      const result = gaining([1, 1.1, 0.9, 1], shares);
      return QUALITY.report({ result })
        .markdown.split('\n')
        .find((line) => line.startsWith('Goals'))!;
    };
    expect(goals([0.5, 0.55, 0.45, 0.5])).toMatch(
      /text lowers CE by 1\.000 \[[\d., ]+\] nats\. compressed has 50 % \[\d+ %, \d+ %\] of the gain \(goal 60 %: missed\)/,
    );
    expect(goals([0.9, 1, 0.8, 0.9])).toContain('(goal 60 %: reached)');
    expect(goals([0.1, 1.1, 0.2, 1])).toContain('of the gain (goal 60 %: not shown)');
    const above = '(goal 60 %: reached, by more than text itself: form rather than context may explain it)';
    expect(goals([3, 3.3, 2.7, 3])).toContain(above);
    expect(goals([0.7, 1.5, 1.6, 0.8])).toContain('(goal 60 %: reached)'); // its interval holds 100 %
    expect(goals([0.5, 0.5, 0.5, 0.5])).toContain(', and saves 85 % of the cost (goal 80 %: reached).');
    expect(ceShare(gaining([1, 1, 1, 1], [0.25, 0.25, 0.25, 0.25]).samples, 'compressed')!.mean).toBeCloseTo(0.25);
  });

  it('what is recovered in cross-entropy is the same share with the same interval in every table', () => {
    const result = gaining([1, 1.1, 0.9, 1], [0.5, 0.55, 0.45, 0.5]);
    const { markdown } = QUALITY.report({ result: { ...result, beside: rungsOf({ ...result, model: 'other' }) } });
    expect(markdown.match(/50 % \[\d+ %, \d+ %\]/g)).toHaveLength(4); // effects, goals, and a rung of either run
    expect(new Set(markdown.match(/50 % \[\d+ %, \d+ %\]/g)).size).toBe(1);
  });

  it('no goal of a gain is judged where text’s own is not shown, however many lines an arm has right', () => {
    const { markdown } = QUALITY.report({ result: gaining([1, -1, 0.5, -0.4], [1, 1, 1, 1]) });
    expect(markdown).toMatch(
      /Goals.*: a gain of text is not shown .* so there is nothing to share\. compressed saves 85 %/,
    );
    expect(markdown).not.toMatch(/of the gain \(goal/);
  });

  /** The result with these medians of TTFT. */
  function timed(medians: Readonly<Record<string, number>>): QualityResult {
    const figures = result.figures.map((each) => ({
      ...each,
      ttft: { median: medians[each.arm]!, low: 0, high: 400 },
    }));
    return { ...result, figures };
  }

  /** The result where text lowers the cross-entropy of each sample so much, and compressed context so much. */
  function gaining(text: readonly number[], compressed: readonly number[]): QualityResult {
    const by = { off: text.map(() => 0), text, compressed } as Record<string, readonly number[]>;
    const samples = result.samples.map((sample, i) => {
      const answers = Object.entries(sample.answers).map(([arm, answer]) => [arm, { ...answer, ce: 3 - by[arm]![i]! }]);
      return { ...sample, answers: Object.fromEntries(answers) };
    });
    return { ...timed({ off: 100, text: 300, compressed: 130 }), samples };
  }
});

describe('the report', () => {
  it("has the rows of the paper's Table 2, and says all that a reader must know of the samples", () => {
    const { markdown, charts } = QUALITY.report({ result: qualityResult() });
    expect(markdown).toContain('| Benchmark | Model | Seq Length | EM ↑ | ES ↑ | CodeBLEU ↑ |');
    expect(markdown).toMatch(/\| bench\.jsonl \| w\/o CFC \| 2000 \| 50\.00 \[[\d.]+, [\d.]+\]/);
    expect(markdown).toMatch(/\|\s+\| w\/ CFC \| 2500 \|/);
    expect(markdown).toMatch(/\|\s+\| LlavaCode \| 2010 \| 75\.00/);
    expect(markdown).toContain('4 of 8 samples of python in the format cceval');
    expect(markdown).toContain('Fields that are not read: note (3)');
    expect(markdown).toContain('1 samples have the task id of an earlier one');
    expect(markdown).toContain('other chunks than the benchmark gives of 1 samples');
    expect(markdown).toContain('Answers that lacked context: 1 × over_budget in text');
    expect(markdown).toContain('Gate: compressed is not shown to be better than off: CE differs by');
    expect(markdown).not.toContain('As Table 12');
    expect(markdown).not.toContain('cut to one statement');
    const unparsed = QUALITY.report({ result: { ...qualityResult(), unparsed: 3, summarizerModel: 'small' } }).markdown;
    expect(unparsed).toContain('- 3 answers may not be cut to one statement');
    expect(unparsed).toContain('- Summaries by small.');
    expect(charts.map(({ name }) => name)).toEqual(['quality', 'quality-ttft', 'quality-ttft-ce']);
    expect(QUALITY.headline(qualityResult())).toMatch(/^off ES 62\.5, text ES/);
  });

  it('with several retrievers it has the rows of Table 12', () => {
    const result = qualityResult();
    const named = { text: 'text (bm25)', compressed: 'text (dense)' } as Record<string, string>;
    const arms: QualityResult['arms'] = [
      { name: 'off', arm: 'off', retriever: undefined },
      { name: 'text (bm25)', arm: 'text', retriever: 'bm25' },
      { name: 'text (dense)', arm: 'text', retriever: 'dense' },
    ];
    const figures = result.figures.map((each) => ({ ...each, arm: named[each.arm] ?? each.arm }));
    const { markdown } = QUALITY.report({ result: { ...result, arms, figures } });
    expect(markdown).toMatch(/\| No CFC \| 50\.00.*\n\| BM25 \| 50\.00.*\n\| dense \(tiny-encoder\) \| 75\.00/);
  });
});

describe('the pace', () => {
  it('rate and time left count what was asked for now, and every tenth is written where nobody watches', () => {
    let nowMs = 0;
    const told: [string, boolean | undefined][] = [];
    const pace = new Pace(
      20,
      (text, lasting) => told.push([text, lasting]),
      () => nowMs,
    );
    pace.done(false);
    expect(told[0]).toEqual([expect.stringMatching(/ 1 of 20 samples, kept from before$/), false]);
    nowMs = 4_000;
    pace.done(true);
    pace.done(true);
    expect(told[1]).toEqual([expect.stringMatching(/ 2 of 20 samples, 0\.25 samples\/s, 72 s left$/), true]);
    expect(told[2]).toEqual([expect.stringMatching(/ 3 of 20 samples, 0\.50 samples\/s, 34 s left$/), false]);
  });
});
