/** The nouns of a completion request, which every room of the gateway shares. They know neither HTTP nor workers. */
import type { RetrieverName } from '../lib/rag/retriever-name.ts';
import { GREEDY, type Sampling } from '../lib/request/next-token.ts';

export type PromptInput = string | readonly number[];
/** How context stands in a prompt: as soft tokens, the best chunks as text and the others as soft tokens, as text. */
export const RAG_MODES = ['compressed', 'mixed', 'text', 'off'] as const;
export type RagMode = (typeof RAG_MODES)[number];

/** Where code ends by itself: see completion/code-end.ts. */
export const STOP_PLACES = ['line', 'statement', 'block'] as const;
export type StopAt = (typeof STOP_PLACES)[number];

export interface RagRequest {
  /**
   * The repository as the client names it; from the HTTP server on, its key in the store. undefined where there is
   * none: the overlay alone is context then.
   */
  readonly repo: string | undefined;
  /** `rag` did not name the repository: one that is not known is answered without its context. */
  readonly isOptional?: boolean;
  /** Such a repository is not known, or the key may not use it. */
  readonly isUnknown?: boolean;
  readonly mode: RagMode;
  /** What the client asked for, where it gets another mode because of the load: see admission/quality-ladder.ts. */
  readonly askedMode?: RagMode;
  /** Chunks to retrieve. */
  readonly topK: number;
  /** The most files of these chunks whose own soft tokens stand before them in compressed context; 0 if not given. */
  readonly fileTokens?: number;
  /** File in which the cursor stands, within the repository, in the normal form of paths. */
  readonly path: string | undefined;
  /** undefined takes the index's own. */
  readonly retriever: RetrieverName | undefined;
  /** Tokens that chunks may take in the prompt, where they stand in it as text. */
  readonly maxTextTokens: number;
  /** Chunks that stand as text in a mixed prompt; undefined leaves that to their scores. */
  readonly textChunks?: number | undefined;
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
  /** The place in the code at which each choice ends; undefined leaves that to the model. */
  readonly stopAt: StopAt | undefined;
  /** Characters by which every line after the first is indented; a choice ends before one that is not. */
  readonly indent: number | undefined;
  /** Language of the code, as editors name it; undefined tells by `rag.path`, or else by the code. */
  readonly language: string | undefined;
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
  /** Time to first token that the client hopes for, in ms: nothing is refused because of it. */
  readonly ttftGoalMs?: number | undefined;
  /** Time per output token that the client hopes for, in ms: it chooses among decode workers. */
  readonly tpotGoalMs?: number | undefined;
  /** Time that the request may take until its prompts have first tokens, in ms. */
  readonly maxPromptMs: number | undefined;
  /** Time after its first token at which a choice ends, in ms; it applies once a line end is out. */
  readonly maxPredictMs: number | undefined;

  /** Text that the completion is expected to be, for the most part: tokens come faster where it is right. */
  readonly prediction?: string | undefined;

  // The fields below are those of editors, whose requests name neither a repository nor a session.
  /** Repository that was asked for without `rag`: one that is not known is answered without context. */
  readonly repository?: string | undefined;
  /** Remote URL of the repository that is edited, as git writes it. */
  readonly gitUrl?: string | undefined;
  /** Path of the file being edited, within the repository or the workspace, in the normal form of paths. */
  readonly filePath?: string | undefined;
  /** Texts that the editor holds, newer than what is indexed; the same list in the same order gives the same prompt. */
  readonly overlay?: readonly OverlayText[] | undefined;
  /** Number of the slot that a client of llama.cpp wants: its requests with the same number make a series. */
  readonly slot?: number | undefined;
  /** Requests of one client that go on where its last one was, for clients that name no session. */
  readonly series?: string | undefined;
}

/** Tokens that a request took. */
export interface Usage {
  /** Soft tokens included. */
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** Tokens of the prompt whose KV was cached. */
  readonly cachedTokens: number;
  /** Soft tokens of the prompt. */
  readonly softTokens: number;
  /** Tokens that were proposed from the client's prediction, and were or were not what the model gave. */
  readonly acceptedPredicted: number;
  readonly rejectedPredicted: number;
}

/** A file, or a part of one, that an editor holds. */
export interface OverlayText {
  /** In the normal form of paths. */
  readonly path: string;
  readonly text: string;
  /** It is a part of a file: what is indexed of the others of its parts still counts. */
  readonly isPart?: boolean;
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
  stopAt: undefined,
  indent: undefined,
  language: undefined,
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
  maxPromptMs: undefined,
  maxPredictMs: undefined,
});

/** The tenant of the gateway's own trial completions, by which it knows that it is ready. */
export const TRIAL_TENANT = 'readiness';
