/**
 * What was shown as ghost text: answers a keystroke that types what is shown without a request, and tells what became
 * of each completion.
 */

/** What becomes of a completion, in the words of `POST /v1/events`. */
export type Outcome = 'view' | 'select' | 'dismiss';

export interface ShownCompletion {
  /** Id of the completion; that of the gateway's answer. */
  readonly id: string;
  readonly uri: string;
  /** The document's text before and behind the completion. */
  readonly before: string;
  readonly behind: string;
  /** The completion, with the document's line ends. Not empty. */
  readonly text: string;
}

/** Completions that are kept: typing one, going back a few characters and typing on asks for nothing. */
const KEPT = 8;

export class GhostText {
  readonly #report: (id: string, outcome: Outcome) => void;
  /** The newest last. */
  #kept: ShownCompletion[] = [];
  /** Completions that were shown and of which nothing has become yet, by id. */
  readonly #open = new Map<string, ShownCompletion>();

  /** @param report told once that a completion is shown, and at most once what became of it. */
  constructor(report: (id: string, outcome: Outcome) => void) {
    this.#report = report;
  }

  /** @returns what is left of a completion whose beginning stands at the end of `before`; undefined where none fits. */
  rest(uri: string, before: string, behind: string): { readonly id: string; readonly text: string } | undefined {
    const shown = this.#kept.findLast((each) => {
      const typed = before.length - each.before.length;
      return (
        each.uri === uri &&
        typed >= 0 &&
        typed < each.text.length &&
        each.behind === behind &&
        before.startsWith(each.before) &&
        before.endsWith(each.text.slice(0, typed))
      );
    });
    if (shown === undefined) return undefined;
    return { id: shown.id, text: shown.text.slice(before.length - shown.before.length) };
  }

  show(completion: ShownCompletion): void {
    this.dismiss();
    this.#kept = [...this.#kept, completion].slice(-KEPT);
    this.#open.set(completion.id, completion);
    this.#report(completion.id, 'view');
  }

  /** Takes note of a document's new text: a completion all of which stands there was taken, at once or typed. */
  changed(uri: string, text: string): void {
    for (const { id, uri: of, before, text: completion, behind } of this.#open.values()) {
      const length = before.length + completion.length + behind.length;
      if (of !== uri || text.length !== length || !text.startsWith(before) || !text.endsWith(behind)) continue;
      if (text.startsWith(completion, before.length)) this.selected(id);
    }
  }

  /** The editor says that the completion was taken. */
  selected(id: string): void {
    if (this.#open.delete(id)) this.#report(id, 'select');
  }

  /** What was shown, of the document if one is given, is shown no more. */
  dismiss(uri?: string): void {
    for (const { id, uri: of } of this.#open.values()) {
      if (uri !== undefined && of !== uri) continue;
      this.#open.delete(id);
      this.#report(id, 'dismiss');
    }
  }
}
