/** The nouns of a completion request, which every room of the gateway shares. They know neither HTTP nor workers. */
import type { RetrieverName } from '../lib/rag/retriever-name.ts';
import type { Sampling } from '../lib/request/next-token.ts';

export type PromptInput = string | readonly number[];
export type RagMode = 'compressed' | 'text' | 'off';

export interface RagRequest {
  /** As the client names it; from the server on, its key in the store. */
  readonly repo: string;
  readonly mode: RagMode;
  readonly topK: number;
  readonly path: string | undefined;
  readonly retriever: RetrieverName | undefined;
  readonly maxTextTokens: number;
}

/** A request as the rest of the gateway sees it: every field decided. */
export interface CompletionRequest {
  readonly model: string | undefined;
  readonly prompts: readonly PromptInput[];
  readonly suffix: string | undefined;
  readonly maxTokens: number;
  /** Of each choice, but for the seed and the model's own stop ids. */
  readonly sampling: Omit<Sampling, 'seed'>;
  /** undefined draws one. */
  readonly seed: number | undefined;
  readonly n: number;
  readonly bestOf: number;
  readonly stop: readonly string[];
  readonly ignoreEos: boolean;
  /** Alternatives to report per token; undefined reports no logprobs. */
  readonly logprobs: number | undefined;
  readonly echo: boolean;
  readonly stream: boolean;
  readonly includeUsage: boolean;
  readonly continuousUsage: boolean;
  readonly returnTokenIds: boolean;
  readonly truncatePromptTokens: number | undefined;
  readonly addSpecialTokens: boolean;
  readonly rag: RagRequest | undefined;
  /** Lower goes sooner, among the same tenant's. */
  readonly priority: number;
  /** Only prompts of the same salt share KV; undefined: those of the tenant. */
  readonly cacheSalt: string | undefined;
  /** A newer request of the same session takes the place of this one. */
  readonly session: string | undefined;
  /** Budget of the whole request, in ms. */
  readonly timeoutMs: number | undefined;
}
