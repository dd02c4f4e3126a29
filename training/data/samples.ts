/**
 * Rows of a data set as samples: the prompt as serving builds it, with the soft tokens of the best chunks, with the
 * chunks as text, or without them. The same code stands in all three.
 */
import type { DecoderSpec } from '../../services/lib/model/checkpoint/spec.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { type BuiltPrompt, PromptBuilder, type PromptParts } from '../../services/lib/text/prompt.ts';
import { choosePromptFormat, type PromptFormat } from '../../services/lib/text/prompt-format.ts';
import type { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import type { Sample } from '../step/rows.ts';
import type { EmbeddedSample } from '../step/trainer.ts';
import type { Embeddings } from './embeddings.ts';
import type { DataRow, DataSet } from './rows.ts';
import { atTokenBoundaries } from './token-boundary.ts';

interface SampleSettings {
  /** The most chunks of a prompt. */
  readonly chunks: number;
  /** Soft tokens of one chunk; 1 where not given. */
  readonly softPerChunk?: number | undefined;
  /** The most tokens of a prompt, soft tokens included. */
  readonly promptTokens: number;
  /** The most tokens of a target. */
  readonly targetTokens: number;
  /** The most tokens that the chunks take as text; those of the code where that has fewer. */
  readonly textTokens: number;
}

export class SampleMaker {
  readonly format: PromptFormat;
  readonly #tokenizer: Tokenizer;
  readonly #builder: PromptBuilder;
  readonly #settings: SampleSettings;
  /** Tokens that begin the current file after context as text. The context's own limit does not count them. */
  readonly #unnamedFile: number;

  /** @param eosIds ids that the model's configuration names as ends */
  constructor(tokenizer: Tokenizer, eosIds: readonly number[], settings: SampleSettings) {
    this.#tokenizer = tokenizer;
    this.format = choosePromptFormat(tokenizer, undefined, eosIds);
    this.#builder = new PromptBuilder(tokenizer, this.format);
    this.#settings = settings;
    this.#unnamedFile = this.format.repository === undefined ? 0 : 1 + tokenizer.encode('\n').length;
  }

  /** A data set as this model reads it: where it cannot fill in the middle, gaps begin between two of its tokens. */
  read(data: DataSet): DataSet {
    return this.format.frame === undefined ? atTokenBoundaries(data, this.#tokenizer) : data;
  }

  /** The chunks of a row that become soft tokens. */
  chunksOf(row: DataRow) {
    return row.chunks.slice(0, this.#settings.chunks);
  }

  /** @throws ServingError sample_invalid where the prompt has no room for its frame. */
  async embedded(row: DataRow, embeddings: Embeddings): Promise<EmbeddedSample> {
    const chunks = this.chunksOf(row);
    const prompt = this.#withSoft(row);
    const softPositions = [...prompt.soft.positions];
    const kept = chunks.slice(0, prompt.contextChunks);
    return { ...this.#sample(row, prompt), softPositions, embeddings: await embeddings.of(kept) };
  }

  /** The same prompt with its chunks as text. @throws as {@link embedded}. */
  withText(row: DataRow): Sample {
    const code = this.#codeTokens(row);
    // A context may take half of a prompt: with more text than code, some of it would make room for more code.
    const maxTokens = Math.min(this.#settings.textTokens, code - 1) - this.#unnamedFile;
    const context = { kind: 'text', repo: '', path: '', chunks: this.chunksOf(row), maxTokens } as const;
    // One token of code, since without a frame there would be no prompt at all.
    const frame = { ...row, left: 'x', right: '' };
    const [alone, framed] = [undefined, context].map((context) => this.#prompt(frame, context, 2 * code));
    return this.#sample(row, this.#prompt(row, context, code + framed!.ids.length - alone!.ids.length));
  }

  /** The same prompt without its chunks. @throws as {@link embedded}. */
  without(row: DataRow): Sample {
    return this.#sample(row, this.#prompt(row, undefined, this.#codeTokens(row)));
  }

  /** The most tokens of the code around the gap and its frame. */
  #codeTokens(row: DataRow): number {
    return this.#settings.promptTokens - this.#withSoft(row).soft.positions.length;
  }

  #withSoft(row: DataRow): BuiltPrompt {
    // The prompt needs the number of vectors alone.
    const vectors = this.chunksOf(row).map(() => new Float32Array(0));
    const perChunk = this.#settings.softPerChunk;
    return this.#prompt(row, { kind: 'soft', vectors, perChunk }, this.#settings.promptTokens);
  }

  /** @throws ServingError sample_invalid, with file and line, where the prompt has no room for its frame. */
  #prompt(row: DataRow, context: PromptParts['context'], truncateTo: number): BuiltPrompt {
    try {
      return this.#built(row, context, truncateTo);
    } catch (error) {
      const cause = ServingError.from(error);
      if (cause.code !== 'context_length_exceeded') throw error;
      throw new ServingError('sample_invalid', `${row.name}: ${cause.message}; raise --prompt-tokens`, { cause });
    }
  }

  #built(row: DataRow, context: PromptParts['context'], truncateTo: number): BuiltPrompt {
    const parts = { prompt: row.left, suffix: row.right, context, capacity: truncateTo + 1, maxTokens: 1, truncateTo };
    const steps = this.#builder.build(parts);
    for (;;) {
      const { done, value } = steps.next();
      if (done) return value;
    }
  }

  /**
   * A target that is not cut ends as an answer does, where the model fills in the middle. One that cannot goes on with
   * what stands after the gap: it would learn little else than an end that it never writes in code.
   */
  #sample({ name, target }: DataRow, prompt: BuiltPrompt): Sample {
    const { targetTokens } = this.#settings;
    const eosId = this.format.frame && this.#tokenizer.eosId;
    const ids = this.#tokenizer.encode(target, 'as text', 'within');
    const targetIds = ids.length < targetTokens && eosId !== undefined ? [...ids, eosId] : ids.slice(0, targetTokens);
    return { name, promptIds: [...prompt.ids], softPositions: [], targetIds };
  }
}

/**
 * Encodes the chunks of the rows that are not kept yet.
 * @param onProgress told how far it is, in words
 * @throws ServingError as {@link Embeddings.add}.
 */
export async function encodeChunks(
  rows: readonly DataRow[],
  samples: Pick<SampleMaker, 'chunksOf'>,
  embeddings: Pick<Embeddings, 'add'>,
  onProgress: (text: string) => void,
  signal?: AbortSignal,
): Promise<void> {
  let looked = 0;
  function* chunks() {
    for (const row of rows) {
      yield* samples.chunksOf(row);
      looked++;
    }
  }
  const told = (done: number) => onProgress(`encoding chunks: ${done}, of ${looked} of ${rows.length} samples`);
  await embeddings.add(chunks(), told, signal);
}

/**
 * @param rows that the longest pass may have
 * @throws ServingError config_invalid where the language model was not made for so many.
 */
export function assertFitsContext(
  { llm, promptTokens }: { readonly llm: string; readonly promptTokens: number },
  { maxPositions }: DecoderSpec,
  rows: number,
): void {
  if (rows <= maxPositions) return;
  const most = promptTokens - rows + maxPositions;
  const has = `a sample may take ${rows} positions with its target and what follows it, and --llm ${llm} has ${maxPositions}`;
  const remedy =
    most > 0 ? `use at most ${most}` : 'shorten --target-tokens, --rollout-tokens or --text-tokens as well';
  throw new ServingError('config_invalid', `--prompt-tokens ${promptTokens}: ${has}: ${remedy}`);
}
