/** How a model wants its prompts: which of its tokens frame a hole to fill, name files, or end an answer. */
import { ServingError } from '../process/errors.ts';

/** The tokens of one family of models, by name. Each that the tokenizer lacks is simply not used. */
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
  // StarCoder, StarCoder2, Granite; their repository form differs, so their context is written as comments.
  starcoder: { frame: ['<fim_prefix>', '<fim_suffix>', '<fim_middle>'], pad: '<fim_pad>' },
  deepseek: { frame: ['<｜fim▁begin｜>', '<｜fim▁hole｜>', '<｜fim▁end｜>'] },
} as const satisfies Record<string, Family>;

export type FamilyName = keyof typeof FAMILIES;
/** `prefix-only`: a model that cannot fill in the middle; RIGHT is left out. */
export type FormatName = FamilyName | 'prefix-only';
export const FORMAT_NAMES: readonly FormatName[] = [...(Object.keys(FAMILIES) as FamilyName[]), 'prefix-only'];

/** Where the text after the cursor stands in the prompt: last (prefix, suffix, middle) or first (suffix, prefix, middle). */
export const PROMPT_ORDERS = ['psm', 'spm'] as const;
export type PromptOrder = (typeof PROMPT_ORDERS)[number];

/** Tokens that end an answer, besides the end of text: what follows them is another file or another turn. */
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
  /** Ids before LEFT, between LEFT and RIGHT, before the answer; undefined where the model cannot fill in. */
  readonly frame: readonly [prefix: number, suffix: number, middle: number] | undefined;
  /** Ids that name a repository and a file; undefined where the model has none. */
  readonly repository: { readonly repo: number; readonly file: number } | undefined;
  /** Stands where a soft token will; the model never sees it. */
  readonly placeholder: number;
  /** Ids that end an answer. */
  readonly stopIds: readonly number[];
}

/**
 * @param wanted the format to use whatever the tokenizer has; undefined chooses by the tokenizer's tokens.
 * @param eosIds that the model's configuration names; chat models end their turns with more than the end of text.
 * @throws ServingError config_invalid where the wanted format needs tokens that the tokenizer lacks.
 */
export function choosePromptFormat(
  tokenizer: { idOf(name: string): number | undefined; readonly eosId: number | undefined },
  wanted?: FormatName,
  eosIds: readonly number[] = [],
): PromptFormat {
  const frames = (name: FamilyName) => FAMILIES[name].frame.every((token) => tokenizer.idOf(token) !== undefined);
  if (wanted !== undefined && wanted !== 'prefix-only' && !frames(wanted)) {
    const lacking = FAMILIES[wanted].frame.filter((token) => tokenizer.idOf(token) === undefined);
    throw new ServingError('config_invalid', `prompt format ${wanted} needs ${lacking.join(', ')} in the tokenizer`);
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
