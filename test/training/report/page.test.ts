/** The page of a run: its curves, its matrices of cosines, and that it needs nothing else. */
import { describe, expect, test } from 'vitest';
import { lineChart } from '../../../training/report/chart.ts';
import { bitmap, cosines } from '../../../training/report/matrix.ts';
import { type RunPicture, runPage } from '../../../training/report/page.ts';

/** The points of the only path of class `line` in a chart, in pixels. */
function pathOf(svg: string): [number, number][] {
  const [, path] = /<path d="M([^"]+)" class="line"/.exec(svg)!;
  return path!.split('L').map((point) => point.split(' ').map(Number) as [number, number]);
}

describe('a chart', () => {
  test('points lie in proportion to their values', () => {
    const [a, b, c] = pathOf(
      lineChart('t', 'step', [
        {
          name: 'n',
          points: [
            [0, 1],
            [5, 3],
            [10, 2],
          ],
        },
      ]),
    );
    expect([a![0], c![0]]).toEqual([62, 544]); // the plot from side to side
    expect(b![0]).toBeCloseTo((62 + 544) / 2, 1);
    expect([a![1], b![1]]).toEqual([242, 34]); // the smallest below, the largest above
    expect(c![1]).toBeCloseTo((242 + 34) / 2, 1);
  });

  test('many points become the means of their neighbours', () => {
    const points = Array.from({ length: 4000 }, (_, i) => [i, i % 2] as const);
    const drawn = pathOf(lineChart('t', 'step', [{ name: 'n', points }]));
    expect(drawn).toHaveLength(400);
    expect(new Set(drawn.map(([, y]) => y)).size).toBe(1);
  });

  test('numbers that are not finite, equal values, a single point and names with marks are drawn', () => {
    const svg = lineChart('a < b & "c"', 'step', [
      {
        name: '<n>',
        points: [
          [0, Number.NaN],
          [1, 2],
          [2, Number.POSITIVE_INFINITY],
        ],
      },
      { name: 'none', points: [] },
    ]);
    expect(svg).toContain('a &lt; b &amp; &quot;c&quot;');
    expect(svg).toContain('<circle');
    expect(svg).not.toMatch(/NaN|Infinity|none</);
    expect(lineChart('t', 'step', [])).not.toMatch(/NaN|Infinity/);
  });
});

describe('a matrix', () => {
  test('cosines are those of all pairs, and 0 with a row of zeros', () => {
    const rows = [
      [3, 0],
      [0, 5],
      [1, 1],
      [0, 0],
    ].map((row) => Float32Array.from(row));
    const half = expect.closeTo(Math.SQRT1_2, 6);
    expect([...cosines(rows)]).toEqual([1, 0, half, 0, 0, 1, half, 0, half, half, expect.closeTo(1, 6), 0, 0, 0, 0, 0]);
  });

  test('a bitmap has one pixel for each value, its first row last, each row padded to four bytes', () => {
    const bytes = Buffer.from(
      bitmap(Float64Array.from([0, 1, -0.5, 1.2, 0.5, 0, 0, 0, 1]), 3).split(',')[1]!,
      'base64',
    );
    expect(bytes.toString('latin1', 0, 2)).toBe('BM');
    expect(bytes.readUInt32LE(2)).toBe(bytes.length);
    const pixels = bytes.subarray(bytes.readUInt32LE(10));
    expect([...pixels]).toEqual([0, 0, 255, 0, 255, 128, 0, 0, 0, 255, 0, 0]);
    const palette = (i: number) => [...bytes.subarray(54 + 4 * i, 57 + 4 * i)];
    expect([palette(0), palette(255)]).toEqual([
      [0x54, 0x01, 0x44],
      [0x25, 0xe7, 0xfd],
    ]);
  });
});

describe('a page', () => {
  const picture: RunPicture = {
    folder: '/somewhere/<run>',
    state: 'step 2 of 4',
    ended: false,
    alarm: undefined,
    records: [
      { step: 0, validEm: 0, validEs: 0.25, validCe: 3 },
      { step: 1, loss: 2, ce: 2, kl: 0, reward: 0 },
    ],
    vectors: {
      embeddings: [Float32Array.of(1, 0), Float32Array.of(0, 1)],
      soft: [Float32Array.of(1), Float32Array.of(1)],
      of: 'the validation',
    },
  };

  test('it draws the losses that have a weight, exact matches also where there are none, and both matrices', () => {
    const page = runPage(picture);
    expect(page).toContain('Training &lt;run&gt;');
    expect([...page.matchAll(/class="title">([^<]+)</g)].map(([, title]) => title)).toEqual([
      'Weighted sum of the losses',
      'Cross-entropy',
      'EM and ES of the validation, %',
    ]);
    expect(page).toContain('exact match');
    expect(page.match(/data:image\/bmp/g)).toHaveLength(2);
    expect(page).toContain('Pairwise cosines of 2 chunks of the validation');
  });

  test('it is read again while the run goes on, shows its alarm, and loads nothing', () => {
    expect(runPage(picture)).toContain('http-equiv="refresh"');
    const ended = runPage({ ...picture, ended: true, alarm: 'collapsed <all>', vectors: undefined });
    expect(ended).not.toContain('http-equiv="refresh"');
    expect(ended).toContain('class="alarm">collapsed &lt;all&gt;');
    expect(ended).not.toContain('data:image');
    expect(runPage(picture)).not.toMatch(/https?:|<script|<link/);
  });
});
