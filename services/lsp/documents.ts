/** The documents that the editor has open, and those among them that are newer than what is on disk. */
import { relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Repository } from './repository.ts';
import { type PositionEncoding, TextBuffer, type TextChange } from './text-buffer.ts';

export interface OpenDocument {
  readonly uri: string;
  /** The editor's name for the language. */
  readonly language: string;
  /** Absolute path; undefined for what is not a file, such as a buffer without a name. */
  readonly path: string | undefined;
  /** undefined where the document lies in no repository. */
  readonly repository: Promise<Repository | undefined>;
  readonly buffer: TextBuffer;
  /** Whether it has changed since it was opened or saved. */
  unsaved: boolean;
  /** Number of the newest change; changes of all documents are counted together. */
  changed: number;
}

/** A file as the editor holds it. */
export interface OverlayFile {
  /** Path in the repository, with forward slashes. */
  readonly path: string;
  readonly text: string;
}

/** Most files of an overlay, and most UTF-16 units of all together: a quarter of what a gateway takes. */
const MAX_OVERLAY_FILES = 64;
const MAX_OVERLAY_CHARACTERS = 256 * 1024;

export class Documents {
  readonly #encoding: PositionEncoding;
  readonly #repositoryOf: (path: string) => Promise<Repository | undefined>;
  readonly #open = new Map<string, OpenDocument>();
  #changes = 0;

  constructor(encoding: PositionEncoding, repositoryOf: (path: string) => Promise<Repository | undefined>) {
    this.#encoding = encoding;
    this.#repositoryOf = repositoryOf;
  }

  get(uri: string): OpenDocument | undefined {
    return this.#open.get(uri);
  }

  open(uri: string, language: string, text: string): OpenDocument {
    const path = filePath(uri);
    const repository = path === undefined ? Promise.resolve(undefined) : this.#repositoryOf(path);
    const buffer = new TextBuffer(text, this.#encoding);
    const document = { uri, language, path, repository, buffer, unsaved: false, changed: 0 };
    this.#open.set(uri, document);
    return document;
  }

  /** @returns the document; undefined where it is not open. */
  change(uri: string, changes: readonly TextChange[]): OpenDocument | undefined {
    const document = this.#open.get(uri);
    if (document === undefined) return undefined;
    document.buffer.apply(changes);
    document.unsaved = true;
    document.changed = ++this.#changes;
    return document;
  }

  saved(uri: string): void {
    const document = this.#open.get(uri);
    if (document !== undefined) document.unsaved = false;
  }

  close(uri: string): void {
    this.#open.delete(uri);
  }

  /**
   * The unsaved documents of a repository, but for the one that is completed: its text goes as prompt and suffix. Where
   * there are more than an overlay may hold, those that changed last are in it. Sorted by path, so that the same files
   * make the same prompt.
   */
  async overlay(repository: Repository, current: OpenDocument): Promise<OverlayFile[]> {
    const files: OverlayFile[] = [];
    let characters = 0;
    for (const document of [...this.#open.values()].sort((a, b) => b.changed - a.changed)) {
      if (!document.unsaved || document === current) continue;
      if ((await document.repository)?.root !== repository.root || document.path === undefined) continue;
      const { text } = document.buffer;
      if (characters + text.length > MAX_OVERLAY_CHARACTERS) continue;
      characters += text.length;
      files.push({ path: pathIn(repository, document.path), text });
      if (files.length === MAX_OVERLAY_FILES) break;
    }
    return files.sort((a, b) => (a.path < b.path ? -1 : 1));
  }
}

/** The path of a file in its repository, with forward slashes. */
export const pathIn = ({ root }: Repository, path: string) => relative(root, path).split(sep).join('/');

function filePath(uri: string): string | undefined {
  try {
    return fileURLToPath(uri);
  } catch {
    return undefined; // another scheme, another host, or not a URI
  }
}
