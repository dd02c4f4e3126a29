/** The form of a model's prompts: which of its tokens frame a gap to fill in, name files, or end an answer. */
import { ServingError } from '../process/errors.ts';

/** The tokens of one family of models, by name. A token that the tokenizer lacks is not used. */
interface Family {
  /** Before LEFT, between LEFT and RIGHT, before the answer. */
  readonly frame: readonly [prefix: string, suffix: string, middle: string];
  readonly pad?: string;
  readonly repo?: string;
  readonly file?: string;
}

const FAMILIES = {
  // Qwen2.5-Coder, CodeGemma, tiny-coder.
  qwen: {
    frame: ['<|fim_prefix|>', '<|fim_suffix|>', '<|fim_middle|>'],
    pad: '<|fim_pad|>',
    repo: '<|repo_name|>',
    file: '<|file_sep|>',
  },
  // StarCoder, StarCoder2, Granite. Their form of a repository differs, so context as text is written as comments.
  starcoder: { frame: ['<fim_prefix>', '<fim_suffix>', '<fim_middle>'], pad: '<fim_pad>' },
  deepseek: { frame: ['<｜fim▁begin｜>', '<｜fim▁hole｜>', '<｜fim▁end｜>'] },
} as const satisfies Record<string, Family>;

type FamilyName = keyof typeof FAMILIES;
/** `prefix-only` is for a model that cannot fill in the middle: RIGHT is left out. */
type FormatName = FamilyName | 'prefix-only';
export const FORMAT_NAMES: readonly FormatName[] = [...(Object.keys(FAMILIES) as FamilyName[]), 'prefix-only'];

/** The place of the text after the cursor: last (prefix, suffix, middle) or first (suffix, prefix, middle). */
export const PROMPT_ORDERS = ['psm', 'spm'] as const;
export type PromptOrder = (typeof PROMPT_ORDERS)[number];

/** Tokens that end an answer, besides the end of text: another file or another turn follows them. */
const ENDS = [
  '<|endoftext|>',
  '<|fim_prefix|>',
  '<|fim_suffix|>',
  '<|fim_middle|>',
  '<|fim_pad|>',
  '<|repo_name|>',
  '<|file_sep|>',
  '<|im_start|>',
  '<|im_end|>',
  '<fim_prefix>',
  '<fim_suffix>',
  '<fim_middle>',
  '<fim_pad>',
  '<repo_name>',
  '<file_sep>',
  '<｜fim▁begin｜>',
  '<｜fim▁hole｜>',
  '<｜fim▁end｜>',
  '<|EOT|>',
  '<|eot_id|>',
];

export interface PromptFormat {
  readonly name: FormatName;
  /**
   * Ids before LEFT, between LEFT and RIGHT, and before the answer; undefined if the model cannot fill in the middle.
   */
  readonly frame: readonly [prefix: number, suffix: number, middle: number] | undefined;
  /** Ids that introduce the name of a repository and of a file; undefined if the model has none. */
  readonly repository: { readonly repo: number; readonly file: number } | undefined;
  /** The id at the place of a soft token; the model never sees it. */
  readonly placeholder: number;
  /** Ids that end an answer. */
  readonly stopIds: readonly number[];
}

/**
 * @param wanted the format to use; if undefined, the tokenizer's tokens decide.
 * @param eosIds ids that the model's configuration names: chat models end their turns with more than the end of text.
 * @throws ServingError config_invalid if the wanted format needs tokens that the tokenizer lacks.
 */
export function choosePromptFormat(
  tokenizer: { idOf(name: string): number | undefined; readonly eosId: number | undefined },
  wanted?: FormatName,
  eosIds: readonly number[] = [],
): PromptFormat {
  const frames = (name: FamilyName) => FAMILIES[name].frame.every((token) => tokenizer.idOf(token) !== undefined);
  if (wanted !== undefined && wanted !== 'prefix-only' && !frames(wanted)) {
    const lacking = FAMILIES[wanted].frame.filter((token) => tokenizer.idOf(token) === undefined);
    throw new ServingError(
      'config_invalid',
      `--prompt-format ${wanted} needs ${lacking.join(', ')}, which the tokenizer lacks`,
    );
  }
  const name = wanted ?? (Object.keys(FAMILIES) as FamilyName[]).find(frames) ?? 'prefix-only';
  const family: Family | undefined = name === 'prefix-only' ? undefined : FAMILIES[name];
  const id = (token: string | undefined) => (token === undefined ? undefined : tokenizer.idOf(token));
  const repo = id(family?.repo);
  const file = id(family?.file);
  const stopIds = [tokenizer.eosId, ...eosIds, ...ENDS.map(id)].filter((found) => found !== undefined);
  return {
    name,
    frame: family && (family.frame.map(id) as [number, number, number]),
    repository: repo === undefined || file === undefined ? undefined : { repo, file },
    placeholder: id(family?.pad) ?? tokenizer.eosId ?? 0,
    stopIds: [...new Set(stopIds)],
  };
}
