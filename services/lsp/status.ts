/** What the editor is told of the system's state: the notification `llavacode/status`, and a line of its log. */
import { ERRORS, isErrorCode, remedyAfter, type ServingError } from '../lib/process/errors.ts';

/** Name of the notification. */
export const STATUS_METHOD = 'llavacode/status';

export interface Status {
  /** ready: a completion came; indexing; nothing: there was none to give; failed: something must be mended first. */
  readonly state: 'ready' | 'indexing' | 'nothing' | 'failed';
  /** One word for programs: an error code, or one of those that docs/lsp.md lists, such as ok, empty or indexing. */
  readonly code: string;
  /** For people: what is the case, and what to do about it. */
  readonly message: string;
  /** Name of the repository that this is about. */
  readonly repository?: string;
  /** Chunks of the repository in the prompt of the completion. */
  readonly chunks?: number;
  /** Nothing is asked for that long, in seconds. */
  readonly retryAfterSeconds?: number;
}

export class StatusLine {
  readonly #send: (status: Status) => void;
  #last = '';

  /** @param send called when the status differs from the one before. */
  constructor(send: (status: Status) => void) {
    this.#send = send;
  }

  set(status: Status): void {
    const text = JSON.stringify(status);
    if (text === this.#last) return;
    this.#last = text;
    this.#send(status);
  }

  failed(error: ServingError, repository?: string): void {
    this.set({
      state: 'failed',
      code: error.code,
      message: inWords(error),
      ...(repository !== undefined && { repository }),
      ...(error.retryAfterSeconds !== undefined && { retryAfterSeconds: error.retryAfterSeconds }),
    });
  }
}

/** A failure and its remedy. */
function inWords({ message, code, remedy: own }: ServingError): string {
  const remedy = remedyAfter(message, code, own);
  return remedy === '' ? message : `${message.replace(/\.$/, '')}. ${remedy}`;
}

/** Why context lacks, in the gateway's word, and the remedy where it is an error code. */
export const reasonInWords = (reason: string): string =>
  isErrorCode(reason) ? `${reason}. ${ERRORS[reason].remedy}` : reason;
