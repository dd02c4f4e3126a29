/**
 * The tables of the paper ("LlavaCode", arXiv 2510.19644) that the bench repeats. The paper measured them on one NVIDIA
 * A100: ms before and after soft tokens replace the retrieved text. Tables 8 and 9 have the TTFT of Table 4.
 */

export const LENGTHS = [
  { text: 2500, soft: 2010 },
  { text: 2000, soft: 1510 },
  { text: 1500, soft: 1010 },
] as const;
type Lengths = (typeof LENGTHS)[number];

/** Share of the prompt's tokens that compression cuts. */
export const tokensCut = ({ text, soft }: Lengths) => (text - soft) / text;

/** Output tokens of a line completion: the authors generate 50, greedily. */
export const LINE_TOKENS = 50;

export const PAPER_MODELS = ['qwen2.5-coder-1.5b', 'qwen2.5-coder-7b', 'qwen2.5-coder-14b'] as const;

type BeforeAfter = readonly [before: number, after: number];
interface PaperRow {
  readonly ttft: BeforeAfter;
  readonly tpot?: BeforeAfter;
}

export interface PaperTable {
  readonly number: number;
  readonly title: string;
  readonly mode: 'disaggregated' | 'colocated';
  readonly regime: 'line' | 'one-token';
  /** Rows by [length][model], in the order of LENGTHS and PAPER_MODELS. */
  readonly rows: readonly (readonly PaperRow[])[];
}

const row = (ttft: BeforeAfter, tpot?: BeforeAfter): PaperRow => ({ ttft, tpot });

export const PAPER_TABLES: readonly PaperTable[] = [
  {
    number: 8,
    title: 'disaggregated, line completion (TTFT also in Table 4, “transformers”)',
    mode: 'disaggregated',
    regime: 'line',
    rows: [
      [row([198.2, 156.6], [23.6, 23.2]), row([668.6, 541.1], [27.2, 25.4]), row([822.8, 661.3], [58.5, 52.8])],
      [row([157.4, 113.4], [23.5, 23.1]), row([540.0, 406.8], [25.1, 24.1]), row([662.2, 496.3], [52.7, 47.0])],
      [row([112.2, 69.7], [23.2, 23.5]), row([406.4, 282.2], [24.1, 24.2]), row([495.6, 339.6], [46.8, 41.1])],
    ],
  },
  {
    number: 9,
    title: 'colocated, line completion (TTFT also in Table 4, “vllm”)',
    mode: 'colocated',
    regime: 'line',
    rows: [
      [row([74.7, 68.2], [5.3, 5.3]), row([198.3, 166.5], [11.7, 11.7]), row([349.8, 291.7], [22.3, 21.8])],
      [row([65.3, 58.4], [5.3, 5.6]), row([179.0, 134.0], [11.7, 11.6]), row([291.5, 232.9], [21.8, 21.8])],
      [row([58.9, 50.3], [5.4, 6.3]), row([138.0, 112.4], [11.6, 11.5]), row([238.2, 174.6], [21.7, 21.4])],
    ],
  },
  {
    number: 10,
    title: 'disaggregated, one token',
    mode: 'disaggregated',
    regime: 'one-token',
    rows: [
      [row([198.2, 159.3]), row([668.1, 539.1]), row([820.9, 661.1])],
      [row([159.9, 121.2]), row([539.1, 406.3]), row([660.6, 495.8])],
      [row([120.7, 75.5]), row([405.4, 281.0]), row([494.9, 339.6])],
    ],
  },
  {
    number: 11,
    title: 'colocated, one token',
    mode: 'colocated',
    regime: 'one-token',
    rows: [
      [row([79.1, 67.0]), row([197.4, 165.9]), row([351.5, 291.2])],
      [row([65.9, 56.4]), row([164.4, 135.8]), row([290.0, 240.9])],
      [row([56.4, 48.7]), row([136.5, 104.6]), row([240.2, 191.4])],
    ],
  },
];

/** The paper's row of a model; undefined for a model that the paper did not measure. */
export function paperRow(table: PaperTable, length: number, model: string): PaperRow | undefined {
  return table.rows[length]?.[(PAPER_MODELS as readonly string[]).indexOf(model)];
}
