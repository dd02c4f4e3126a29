/**
 * The requests of an evaluation. The same code stands in the prompts of all arms, cut as the paper's evaluation cuts
 * it: of the room for code a third is for the first tokens after the gap, and twice as much for the last before it. A
 * model that cannot fill in the middle reads only what is before it, so that has all of the room.
 */
import { randomUUID } from 'node:crypto';
import type { CompletionBody } from '../../services/client.ts';
import type { RagMode } from '../../services/gateway/request.ts';
import type { RetrieverName } from '../../services/lib/rag/retriever-name.ts';
import { choosePromptFormat, formOf, type PromptFormat } from '../../services/lib/text/prompt-format.ts';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { atTokenBoundary, type Gap } from '../../training/data/token-boundary.ts';
import { type Arm, type EvaluateOptions, REWRITERS, type Rewriter, WITH_FILES } from './command.ts';

/** One way of completing every sample. */
export interface ArmSpec {
  /** The arm, and its retriever where several are compared. */
  readonly name: string;
  readonly arm: Arm;
  /** undefined for an arm that retrieves nothing. */
  readonly retriever: RetrieverName | undefined;
}

export const isRewriter = (arm: Arm): arm is Rewriter => (REWRITERS as readonly Arm[]).includes(arm);
/** Rewriters whose text stands in the benchmark. */
export const isGiven = (arm: Arm): boolean => arm === 'zip' || arm.startsWith('given-');

/** The arms of a run: those that the server retrieves for once for each retriever, rewriters with the first one. */
export function armSpecs({ arms, retrievers }: Pick<EvaluateOptions, 'arms' | 'retrievers'>): ArmSpec[] {
  return [...new Set(arms)].flatMap((arm): ArmSpec[] => {
    if (arm === 'off' || isGiven(arm)) return [{ name: arm, arm, retriever: undefined }];
    const named = [...new Set(retrievers)];
    if (isRewriter(arm)) return [{ name: arm, arm, retriever: named[0] }];
    return named.map((retriever) => ({ name: named.length === 1 ? arm : `${arm} (${retriever})`, arm, retriever }));
  });
}

type PromptSettings = Pick<EvaluateOptions, 'promptTokens' | 'textTokens' | 'topK' | 'promptOrder' | 'fileTokens'> &
  Partial<Pick<EvaluateOptions, 'textChunks'>>;

/** Arms whose context the server finds. */
type RetrievingArm = RagMode | typeof WITH_FILES;

/** The code around a gap, cut to the budget. */
export interface CutCode {
  readonly left: string;
  readonly right: string;
}

type Prompt = Pick<CompletionBody, 'prompt' | 'suffix' | 'rag' | 'cache_salt'>;

/** Tokens that the longest prompt has besides code, context and output: names of files, and what frames them. */
const NAMES = 128;

/** Tokens that a slot must hold for the longest request of a run. */
export const tokensOf = (
  { promptTokens, textTokens, rewriteTokens, maxTokens, topK, fileTokens }: EvaluateOptions,
  softPerChunk: number,
  longestTarget: number,
): number => {
  const context = Math.max(textTokens, rewriteTokens, topK * softPerChunk + fileTokens);
  return promptTokens + context + NAMES + Math.max(maxTokens, longestTarget);
};

export class EvaluationPrompts {
  readonly #tokenizer: Tokenizer;
  readonly #format: PromptFormat;
  readonly #settings: PromptSettings;

  constructor(tokenizer: Tokenizer, settings: PromptSettings) {
    this.#tokenizer = tokenizer;
    this.#format = choosePromptFormat(tokenizer);
    this.#settings = settings;
  }

  /**
   * The gap as this model is asked for it. One that cannot fill in the middle goes on with a text, so the gap begins
   * between two of its tokens, as in training.
   */
  gap({ left, target }: Gap): Gap {
    return this.#format.frame === undefined ? atTokenBoundary(this.#tokenizer, { left, target }) : { left, target };
  }

  cut(left: string, right: string): CutCode {
    const { frame } = this.#format;
    const room = this.#settings.promptTokens - (frame?.length ?? 0);
    const rightTokens = Math.floor(room / 3);
    const leftTokens = frame === undefined ? room : 2 * rightTokens;
    const tokenizer = this.#tokenizer;
    return {
      left: uncutCharacters(tokenizer.decode(tokenizer.encodeTail(left, leftTokens))),
      right: uncutCharacters(tokenizer.decode(tokenizer.encodeHead(right, rightTokens))),
    };
  }

  /** A prompt whose context the server finds. Its salt is new, so that no cached prefix shortens its TTFT. */
  retrieving(
    code: CutCode,
    arm: RetrievingArm,
    at: { readonly repo: string; readonly path: string; readonly retriever: RetrieverName | undefined },
  ): Prompt {
    const { topK, textTokens, textChunks, fileTokens } = this.#settings;
    const { repo, path, retriever } = at;
    const mode = arm === WITH_FILES ? 'compressed' : arm;
    const asText = mode === 'mixed' && textChunks !== undefined ? { text_chunks: textChunks } : {};
    const ofFiles = arm === WITH_FILES ? { file_tokens: fileTokens } : {};
    const budget = mode === 'compressed' ? ofFiles : { max_text_tokens: textTokens, ...asText };
    const rag = { repo, mode, top_k: topK, ...budget, ...(path !== '' && { path }), ...(retriever && { retriever }) };
    return { ...this.plain(code), rag };
  }

  /** A prompt without context. */
  plain({ left, right }: CutCode): Prompt {
    return { prompt: left, suffix: right, cache_salt: randomUUID() };
  }

  /** A prompt with these tokens of context, which stand where the server would put context as text. */
  withContext({ left, right }: CutCode, context: readonly number[]): Prompt {
    const tokenizer = this.#tokenizer;
    const form = formOf(this.#format, this.#settings.promptOrder) ?? (['left'] as const);
    const sides = { left: tokenizer.encode(left), right: tokenizer.encode(right) };
    const code = form.flatMap((part) => (typeof part === 'number' ? part : [...sides[part]]));
    return { prompt: [...tokenizer.leadingIds, ...context, ...code], cache_salt: randomUUID() };
  }
}

/** A text without the parts of characters that a cut between tokens leaves at its ends. */
const uncutCharacters = (text: string) => text.replace(/^\ufffd+|\ufffd+$/g, '');
