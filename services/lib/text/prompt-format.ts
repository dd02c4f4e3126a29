/** The form of a model's prompts: which of its tokens frame a gap to fill in, name files, or end an answer. */
import { ServingError } from '../process/errors.ts';

/** The text before the cursor, or after it, as a part of a prompt. */
type Side = 'left' | 'right';
/** A frame as it is written: names of tokens, and the places of the two sides. */
type Form = readonly string[];

/** The place of the text after the cursor: last (prefix, suffix, middle) or first (suffix, prefix, middle). */
export const PROMPT_ORDERS = ['psm', 'spm'] as const;
export type PromptOrder = (typeof PROMPT_ORDERS)[number];

/** The tokens of one family of models, by name. A token that the tokenizer lacks is not used. */
interface Family {
  /** The forms that the family was trained on. Those of one family have the same tokens. */
  readonly forms: Partial<Record<PromptOrder, Form>>;
  readonly pad?: string;
  readonly repo?: string;
  readonly file?: string;
}

/** Both orders of a family that has one token before each part. */
const both = (prefix: string, suffix: string, middle: string): Family['forms'] => ({
  psm: [prefix, 'left', suffix, 'right', middle],
  spm: [suffix, 'right', prefix, 'left', middle],
});

const FAMILIES = {
  // Qwen2.5-Coder, CodeGemma, Granite 4, tiny-coder.
  qwen: {
    forms: both('<|fim_prefix|>', '<|fim_suffix|>', '<|fim_middle|>'),
    pad: '<|fim_pad|>',
    repo: '<|repo_name|>',
    file: '<|file_sep|>',
  },
  // StarCoder, StarCoder2, Granite up to 3. Their form of a repository differs, so context as text is written as
  // comments.
  starcoder: { forms: both('<fim_prefix>', '<fim_suffix>', '<fim_middle>'), pad: '<fim_pad>' },
  deepseek: { forms: both('<｜fim▁begin｜>', '<｜fim▁hole｜>', '<｜fim▁end｜>') },
  // Codestral, Devstral: the answer follows LEFT at once, so there is no other order.
  codestral: { forms: { spm: ['[SUFFIX]', 'right', '[PREFIX]', 'left'] } },
  // Code Llama writes the suffix first in a form of its own (arXiv:2308.12950, section 2.3).
  codellama: {
    forms: {
      psm: ['▁<PRE>', 'left', '▁<SUF>', 'right', '▁<MID>'],
      spm: ['▁<PRE>', '▁<SUF>', 'right', '▁<MID>', 'left'],
    },
  },
  // CodeGeeX4, GLM-4.5 and later.
  glm: { forms: both('<|code_prefix|>', '<|code_suffix|>', '<|code_middle|>') },
  // Seed-Coder was trained with the suffix first alone (arXiv:2506.03524).
  seed: { forms: { spm: ['<[fim-suffix]>', 'right', '<[fim-prefix]>', 'left', '<[fim-middle]>'] } },
} as const satisfies Record<string, Family>;

type FamilyName = keyof typeof FAMILIES;
/** `prefix-only` is for a model that cannot fill in the middle: RIGHT is left out. */
type FormatName = FamilyName | 'prefix-only';
export const FORMAT_NAMES: readonly FormatName[] = [...(Object.keys(FAMILIES) as FamilyName[]), 'prefix-only'];

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
  '[SUFFIX]',
  '[PREFIX]',
  '[MIDDLE]',
  '▁<PRE>',
  '▁<SUF>',
  '▁<MID>',
  '▁<EOT>',
  '<|code_prefix|>',
  '<|code_suffix|>',
  '<|code_middle|>',
  '<[fim-prefix]>',
  '<[fim-suffix]>',
  '<[fim-middle]>',
  '<[end▁of▁sentence]>',
  // CodeGemma begins another file with it.
  '<|file_separator|>',
  // Granite's names of a repository and of a file.
  '<reponame>',
  '<filename>',
  '<|reponame|>',
  '<|filename|>',
  // GLM ends its turns with the next speaker.
  '<|user|>',
  '<|observation|>',
  '<|EOT|>',
  '<|eot_id|>',
];

export interface PromptFormat {
  readonly name: FormatName;
  /** Ids of the tokens that frame the two sides; undefined if the model cannot fill in the middle. */
  readonly frame: readonly number[] | undefined;
  /** The orders in which the model fills in the middle: ids of the frame, and the places of the sides. */
  readonly forms: Partial<Record<PromptOrder, readonly (number | Side)[]>>;
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
  const frames = (name: FamilyName) => tokensOf(FAMILIES[name]).every((token) => tokenizer.idOf(token) !== undefined);
  if (wanted !== undefined && wanted !== 'prefix-only' && !frames(wanted)) {
    const lacking = tokensOf(FAMILIES[wanted]).filter((token) => tokenizer.idOf(token) === undefined);
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
  const asIds = (form: Form) => form.map((part) => (isSide(part) ? part : id(part)!));
  return {
    name,
    frame: family && tokensOf(family).map((token) => id(token)!),
    forms: Object.fromEntries(Object.entries(family?.forms ?? {}).map(([order, form]) => [order, asIds(form)])),
    repository: repo === undefined || file === undefined ? undefined : { repo, file },
    placeholder: id(family?.pad) ?? tokenizer.eosId ?? 0,
    stopIds: [...new Set(stopIds)],
  };
}

const isSide = (part: string): part is Side => part === 'left' || part === 'right';

/** Names of the tokens of a family's frame. */
const tokensOf = ({ forms }: Family) => (forms.psm ?? forms.spm ?? []).filter((part) => !isSide(part));

/** The form that has the order asked for, or the only one of the family. */
export const formOf = ({ forms }: Pick<PromptFormat, 'forms'>, order: PromptOrder) =>
  forms[order] ?? forms.psm ?? forms.spm;
