/** The nouns of a completion request, which every room of the gateway shares. They know neither HTTP nor workers. */
import type { RetrieverName } from '../lib/rag/retriever-name.ts';
import { GREEDY, type Sampling } from '../lib/request/next-token.ts';

export type PromptInput = string | readonly number[];
export const RAG_MODES = ['compressed', 'text', 'off'] as const;
export type RagMode = (typeof RAG_MODES)[number];

export interface RagRequest {
  /** The repository as the client names it; from the HTTP server on, its key in the store. */
  readonly repo: string;
  readonly mode: RagMode;
  /** Chunks to retrieve. */
  readonly topK: number;
  /** File in which the cursor stands, within the repository, in the normal form of paths. */
  readonly path: string | undefined;
  /** undefined takes the index's own. */
  readonly retriever: RetrieverName | undefined;
  /** Tokens that chunks may take in the prompt, where they stand in it as text. */
  readonly maxTextTokens: number;
}

/** A request as the rest of the gateway sees it: every field decided. */
export interface CompletionRequest {
  readonly model: string | undefined;
  readonly prompts: readonly PromptInput[];
  /** Text after the cursor; undefined for a prompt without fill-in-the-middle. */
  readonly suffix: string | undefined;
  /** Text that the completion begins with: the model goes on after it. undefined lets the model begin. */
  readonly completionPrefix: string | undefined;
  /** Output tokens of one choice. */
  readonly maxTokens: number;
  /** How each choice is sampled, apart from its seed and the model's own stop ids. */
  readonly sampling: Omit<Sampling, 'seed'>;
  /** undefined draws one. */
  readonly seed: number | undefined;
  /** Choices per prompt that are given back. */
  readonly n: number;
  /** Choices per prompt that are generated; the likeliest `n` are given back. */
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
  /** A prompt with a lower value goes sooner, among the same tenant's. */
  readonly priority: number;
  /** Only prompts of the same salt share KV; undefined: those of the tenant. */
  readonly cacheSalt: string | undefined;
  /** A newer request of the same session takes the place of this one. */
  readonly session: string | undefined;
  /** Budget of the whole request, in ms; undefined takes the gateway's own. */
  readonly timeoutMs: number | undefined;
}

/** Values of fields that a request does not set: OpenAI's defaults, and vLLM's for fields that OpenAI does not have. */
export const COMPLETION_DEFAULTS: Omit<CompletionRequest, 'prompts'> = Object.freeze({
  model: undefined,
  suffix: undefined,
  completionPrefix: undefined,
  maxTokens: 16,
  sampling: { ...GREEDY, temperature: 1 },
  seed: undefined,
  n: 1,
  bestOf: 1,
  stop: [],
  ignoreEos: false,
  logprobs: undefined,
  echo: false,
  stream: false,
  includeUsage: false,
  continuousUsage: false,
  returnTokenIds: false,
  truncatePromptTokens: undefined,
  addSpecialTokens: true,
  rag: undefined,
  priority: 0,
  cacheSalt: undefined,
  session: undefined,
  timeoutMs: undefined,
});
