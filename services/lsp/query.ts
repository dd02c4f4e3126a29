/** What a completion is asked for with, what comes back, and what the language server needs of a system. */
import type { ServingError } from '../lib/process/errors.ts';
import type { OverlayFile } from './documents.ts';
import type { Outcome } from './ghost-text.ts';
import type { Repository } from './repository.ts';

export interface CompletionQuery {
  /** Text before and behind the cursor, with '\n' as line end. */
  readonly prompt: string;
  readonly suffix: string;
  /** The editor's name for the language. */
  readonly language: string;
  /** undefined for a document that lies in no repository. */
  readonly context: QueryContext | undefined;
}

interface QueryContext {
  /** Name of the repository. */
  readonly repo: string;
  /** Path of the document in the repository, with forward slashes. */
  readonly path: string;
  /** Other files of the repository that are newer in the editor than on disk. */
  readonly files: readonly OverlayFile[];
}

export interface CompletionAnswer {
  readonly id: string;
  /** What is to be inserted at the cursor, with '\n' as line end; may be empty. */
  readonly text: string;
  /** Chunks of the repository in the prompt. */
  readonly chunks: number;
  /** Why there was less context than asked for, in the gateway's words. */
  readonly degraded: string | undefined;
}

/** A repository that is being brought into the index, as a whole. */
export interface IndexRun {
  /** @param percentage from 0 to 100. */
  progress(message: string, percentage: number): void;
  /** @param outcome what was indexed, in words, or why nothing was. */
  end(outcome: string | ServingError): void;
}

export interface Followed {
  /** A run over the whole repository begins. */
  readonly onRun: () => IndexRun;
  /** Told of a failure after which the repository is followed on. */
  readonly onFailure: (error: ServingError) => void;
  readonly signal: AbortSignal;
}

/** The system that completes. */
export interface CompletionSystem {
  /** Name of a repository in requests, from its folder. */
  nameOf(root: string): string;
  /** @throws ServingError; the signal's reason. */
  complete(query: CompletionQuery, signal: AbortSignal): Promise<CompletionAnswer>;
  /** Tells what became of a completion. Failures are not told to anybody. */
  report(id: string, outcome: Outcome): void;
  /** Resolves when all that was reported has been sent, or can wait no longer. */
  reported(): Promise<void>;
  /**
   * Indexes a repository and whatever changes in it until the signal; undefined where the user does not want that.
   * @throws ServingError that a repetition would not mend.
   */
  readonly follow: ((repository: Repository, followed: Followed) => Promise<void>) | undefined;
}

/** Most UTF-16 units that are sent of a document before and behind the cursor: more than models of today take. */
const MAX_PROMPT = 96 * 1024;
const MAX_SUFFIX = 32 * 1024;
/**
 * The first unit sent of a long document moves by this many at a time: between two moves, one keystroke's prompt begins
 * as the one's before, and its KV cache is reused.
 */
const WINDOW_STEP = 16 * 1024;
/** The text that is sent begins with a line, unless the first one would be longer than this, in UTF-16 units. */
const LONGEST_LINE = 4 * 1024;

/** The text before a cursor that is sent: its end, from the beginning of a line. */
export function promptOf(before: string): string {
  const least = before.length - MAX_PROMPT;
  if (least <= 0) return withUnixLineEnds(before);
  const from = Math.ceil(least / WINDOW_STEP) * WINDOW_STEP;
  const lineEnd = before.slice(from - 1, from + LONGEST_LINE).indexOf('\n');
  // Without a line end near, the first unit may be the second half of a character.
  return withUnixLineEnds(before.slice(from + Math.max(0, lineEnd))).replace(/^[\udc00-\udfff]/, '');
}

/** The text behind a cursor that is sent. */
export const suffixOf = (behind: string): string =>
  withUnixLineEnds(behind.length <= MAX_SUFFIX ? behind : behind.slice(0, MAX_SUFFIX).replace(/[\ud800-\udbff]$/, ''));

const withUnixLineEnds = (text: string) => text.replaceAll('\r\n', '\n');

/** A completion as it is inserted: without white space at its end. '' where nothing is left. */
export const insertionOf = (text: string, lineEnd: string): string => text.trimEnd().replaceAll(/\r\n|\r|\n/g, lineEnd);
