import { describe, expect, it } from 'vitest';
import { gateOf, recovered, savingKept } from '../../../bench/quality/measure.ts';
import { Pace } from '../../../bench/quality/pace.ts';
import { QUALITY } from '../../../bench/quality/report.ts';
import type { QualityResult } from '../../../bench/quality/result.ts';
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

  it('every two arms are compared, and the gate asks for a gain', () => {
    expect(result.comparisons.map(({ arm, against }) => `${arm}-${against}`)).toEqual([
      'text-off',
      'compressed-off',
      'compressed-text',
    ]);
    expect(result.comparisons[1]).toMatchObject({ exactMatch: { mean: 0.25 }, exactMatchP: 1, ce: { mean: -0.25 } });
    expect(gateOf('compressed', 'off', result.samples)).toMatchObject({ passed: true });
    expect(gateOf('off', 'compressed', result.samples)).toMatchObject({ passed: false });
    expect(gateOf('text', 'off', result.samples)).toMatchObject({ passed: false, difference: { mean: 0 } });
  });

  it('the share of the gain of text is known only where text gains', () => {
    expect(recovered(result.figures, 'compressed', 'exactMatch')).toBeNull();
    const gaining = result.figures.map((each) => {
      const mean = { off: 0.4, text: 0.6, compressed: 0.5 }[each.arm]!;
      return { ...each, scores: { ...each.scores, exactMatch: { mean, low: 0, high: 1 } } };
    });
    expect(recovered(gaining, 'compressed', 'exactMatch')).toBeCloseTo(0.5);
    const ce = { off: 2, text: 1.5, compressed: 1.6 } as Record<string, number>;
    const withCe = gaining.map((each) => ({ ...each, ce: { mean: ce[each.arm]!, low: 1, high: 3 } }));
    expect(recovered(withCe, 'compressed', 'ce')).toBeCloseTo(0.8);
    const named = { text: 'mixed', compressed: 'compressed', off: 'off' } as Record<string, string>;
    expect(
      recovered(
        gaining.map((each) => ({ ...each, arm: named[each.arm]! })),
        'mixed',
        'ce',
      ),
    ).toBeNull();
  });

  it('the saving kept is measured between text and no context, and goals are reached or missed by it', () => {
    const median = { off: 100, text: 300, compressed: 130 } as Record<string, number>;
    const mean = { off: 0.4, text: 0.6, compressed: 0.5 } as Record<string, number>;
    const timed = result.figures.map((each) => ({
      ...each,
      ttft: { median: median[each.arm]!, low: 0, high: 400 },
      scores: { ...each.scores, exactMatch: { mean: mean[each.arm]!, low: 0, high: 1 } },
    }));
    expect(savingKept(timed, 'compressed')).toBeCloseTo(0.85);
    expect(QUALITY.report({ result: { ...result, figures: timed } }).markdown).toContain(
      'compressed has 50 % (goal 60 %: missed) of the gain, and saves 85 % (goal 80 %: reached) of the cost.',
    );
    const level = timed.map((each) => ({ ...each, scores: result.figures[0]!.scores }));
    expect(QUALITY.report({ result: { ...result, figures: level } }).markdown).toContain(
      'compressed has no gain to share, since text has none, and saves 85 % (goal 80 %: reached) of the cost.',
    );
    const slow = timed.map((each) => ({ ...each, ttft: { ...each.ttft, median: 100 } }));
    expect(savingKept(slow, 'compressed')).toBeNull();
    expect(QUALITY.report({ result: { ...result, figures: slow } }).markdown).not.toContain('Goals');
  });
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
    expect(markdown).toContain('Gate: compressed is better than off');
    expect(markdown).not.toContain('As Table 12');
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
