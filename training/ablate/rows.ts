/**
 * The rows of an ablation: what each is trained with, beside the paper's figures for it. All other settings are equal
 * for all rows.
 */
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { readNetworkSpec } from '../../services/lib/model/checkpoint/source-network.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath } from '../../services/lib/process/os-errors.ts';
import { ALIGNMENT_FORMS, ARMS, type Arm, PRETRAIN_SCHEMES } from '../choices.ts';
import type { Pretraining } from '../pretrain/settings.ts';
import type { TrainOptions } from '../run/settings.ts';

/** Settings in which rows may differ. */
type Changes = Partial<
  Pick<
    TrainOptions,
    | 'weights'
    | 'layers'
    | 'encoder'
    | 'encoderChoices'
    | 'alignmentForm'
    | 'learningRate'
    | 'chunks'
    | 'seed'
    | 'pretrain'
  >
>;

export interface Row {
  /** Name of its folder. */
  readonly id: string;
  readonly title: string;
  readonly arm: Arm;
  /** Of a row that is trained: one of the arm `compressed`. */
  readonly changes: Changes;
  /** The paper's figures, in percent but for CE; none where it has no such row. */
  readonly paper: {
    readonly ce?: number;
    readonly em?: number;
    readonly es?: number;
    readonly parameters?: string;
    /** What it says of a row in words, where it gives no figures. */
    readonly says?: string;
  };
}

const NO_WEIGHTS = { ce: 0, reinforce: 0, kl: 0, alignment: 0 };
/** The weights of the paper's final loss (Table 7, 1.5B). */
const LLAVACODE = { ...NO_WEIGHTS, ce: 0.9, reinforce: 0.1, alignment: 0.1 };

const trained = (id: string, title: string, changes: Changes, paper: Row['paper']): Row => ({
  id,
  title,
  arm: 'compressed',
  changes,
  paper,
});

/** Table 1: losses. */
export const LOSS_ROWS: readonly Row[] = [
  { id: 'none', title: 'without context', arm: 'none', changes: {}, paper: { ce: 0.97, em: 45.97, es: 66.57 } },
  { id: 'text', title: 'context as text', arm: 'text', changes: {}, paper: { ce: 0.99, em: 50.87, es: 69.43 } },
  trained('llava', 'LLaVA (CE only)', { weights: { ...NO_WEIGHTS, ce: 1 } }, { ce: 0.8, em: 38.57, es: 63.6 }),
  trained(
    'reinforce',
    'REINFORCE only',
    { weights: { ...NO_WEIGHTS, reinforce: 1 } },
    { ce: 5.18, em: 40.61, es: 63.91 },
  ),
  trained(
    'ce-cosine',
    'CE + Cos Align',
    { weights: { ...NO_WEIGHTS, ce: 0.9, alignment: 0.1 } },
    { ce: 0.89, em: 42.3, es: 64.43 },
  ),
  trained('xrag', 'xRAG (CE + KL)', { weights: { ...NO_WEIGHTS, ce: 1, kl: 2 } }, { ce: 0.84, em: 44, es: 65.5 }),
  trained('llavacode', 'LlavaCode', { weights: LLAVACODE }, { ce: 1.02, em: 47.66, es: 68.74 }),
];

/** How each scheme is asked for in {@link pretrainingRows}. */
export type Schemes = Readonly<Record<Pretraining['scheme'], Pretraining>>;

/**
 * Appendix E: the usual training without a stage before it, and after each of the two schemes. The paper gives no
 * figures for these two.
 */
export const pretrainingRows = (schemes: Schemes): readonly Row[] => [
  LOSS_ROWS[0]!,
  { ...LOSS_ROWS.at(-1)!, id: 'single-stage', title: 'LlavaCode, one stage' },
  trained(
    'reconstruct',
    'after reconstruction of chunks',
    { weights: LLAVACODE, pretrain: schemes.reconstruct },
    { says: 'no improvement' },
  ),
  trained(
    'memory',
    'after regression on memory tokens',
    { weights: LLAVACODE, pretrain: schemes.memory },
    { says: 'fits a small subset alone' },
  ),
];

/** The paper's figures of Table 3, by architecture of the encoder and number of layers. */
const ENCODER_FIGURES: Readonly<Record<string, Row['paper']>> = {
  'roberta 2': { parameters: '3.5M', em: 46.69, es: 67.65 },
  'roberta 3': { parameters: '16.5M', em: 46.94, es: 68.26 },
  'qwen3 2': { parameters: '3.9M', em: 47.01, es: 68.15 },
  'qwen3 3': { parameters: '17.3M', em: 47.66, es: 68.74 },
};

/**
 * Table 3: each encoder with projectors of two and three layers. UniXcoder reads syntax trees, as in the paper.
 * @param llm encodes where no encoder is given
 * @throws ServingError checkpoint_invalid
 */
export async function encoderRows(
  encoders: readonly string[],
  llm: string,
  choices: TrainOptions['encoderChoices'],
): Promise<Row[]> {
  const rows: Row[] = [];
  const folders = encoders.length === 0 ? [undefined] : encoders;
  for (const [i, encoder] of folders.entries()) {
    const { architecture } = await readNetworkSpec(encoder ?? llm);
    const isUnixcoder = architecture === 'roberta';
    const encoderChoices = isUnixcoder ? { modality: 'ast' as const, ...defined(choices) } : choices;
    for (const layers of [2, 3] as const) {
      const title = `${encoder === undefined ? 'the language model' : nameOf(encoder)}, ${layers} layers`;
      rows.push(
        trained(
          `encoder-${i + 1}-layers-${layers}`,
          title,
          { encoder, encoderChoices, layers, weights: LLAVACODE },
          ENCODER_FIGURES[`${architecture} ${layers}`] ?? {},
        ),
      );
    }
  }
  return rows;
}

const nameOf = (folder: string) => folder.replace(/\/+$/, '').split('/').at(-1)!;
const defined = <T extends object>(values: T): T =>
  Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as T;

const weight = z.number().min(0).default(0);
const rowSchema = z.strictObject({
  id: z.string().regex(/^[a-z0-9][a-z0-9-]*$/, 'has lower-case letters, digits and "-" alone'),
  title: z.string().min(1).optional(),
  arm: z.enum(ARMS).default('compressed'),
  weights: z
    .strictObject({
      ce: weight,
      reinforce: weight,
      kl: weight,
      alignment: weight,
      distill: z.number().min(0).optional(),
    })
    .optional(),
  layers: z.union([z.literal(2), z.literal(3), z.literal(4)]).optional(),
  encoder: z.string().min(1).optional(),
  alignmentForm: z.enum(ALIGNMENT_FORMS).optional(),
  learningRate: z.number().positive().optional(),
  chunks: z.number().int().positive().optional(),
  seed: z.number().int().positive().optional(),
  pretrain: z.enum(PRETRAIN_SCHEMES).optional(),
  paper: z
    .strictObject({
      ce: z.number().optional(),
      em: z.number().optional(),
      es: z.number().optional(),
      parameters: z.string().optional(),
      says: z.string().optional(),
    })
    .default({}),
});
const rowsSchema = z
  .array(rowSchema)
  .min(1, 'has no rows')
  .refine((rows) => new Set(rows.map(({ id }) => id)).size === rows.length, 'has two rows of one id');

/**
 * Rows from a file of JSON: a list of objects with `id`, `title`, `arm`, settings and the paper's figures.
 * @param schemes how a row is pretrained that names one of them
 * @throws ServingError path_unusable; config_invalid that names row and field.
 */
export async function readRows(path: string, schemes: Schemes): Promise<Row[]> {
  const text = await atPath(`${path}, which is not table1, table3 or pretraining`, () => readFile(path, 'utf8'));
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new ServingError(
      'config_invalid',
      `${path} is not JSON: name table1, table3, pretraining or a list of rows`,
      { cause },
    );
  }
  const parsed = rowsSchema.safeParse(json);
  if (!parsed.success) throw new ServingError('config_invalid', `${path}: ${z.prettifyError(parsed.error)}`);
  return parsed.data.map(({ id, title = id, arm, paper, pretrain, ...changes }) => ({
    id,
    title,
    arm,
    paper,
    changes: pretrain === undefined ? changes : { ...changes, pretrain: schemes[pretrain] },
  }));
}
