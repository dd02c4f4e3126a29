/**
 * The one form in which the name of a file is compared, filtered and stored. Clients spell the same file in many ways:
 * `src\main.py` on Windows, `file:///src/main.py` in an editor, `é` as one character or as two. A rule that sees one
 * spelling and a store that keeps another let files through that the rule keeps out, so every name that comes in passes
 * through here before any rule looks at it.
 */
import { isWellFormed } from '../../request/well-formed.ts';

type Parts = readonly string[];

/** Forms of a URL of a file: `file:///a`, `file://localhost/a`, `file://server/a` and `file:/a` (RFC 8089). */
const FILE_URL = /^file:(?=[/\\])/i;
/** What ends the path in a URL: editors add `#L10` for a line. */
const URL_PATH_END = /[?#]/;
const DRIVE = /^[A-Za-z]:$/;
/** The prefix by which Windows names paths beyond 260 characters: `\\?\C:\src`. */
const LONG_PATH = '//?/';

/**
 * The normal form of a file's name: relative to the repository's root, with single forward slashes and without `.`, in
 * Unicode's composed form (NFC). Backslashes are slashes; leading and trailing slashes, drive letters, and the scheme,
 * `localhost` and percent-encoding of a `file:` URL are dropped.
 *
 * What is in this form already stays as it is.
 * @returns undefined for a text that has no such form: a part `..`, a control character (NUL and line breaks among
 *   them), nothing but the root, percent-encoding that is not UTF-8, or one spelling hidden in another
 *   (`file:///file:///a`), which a second look would read differently; or half of a character, which two names that
 *   differ would share.
 */
export function normalisePath(text: string): string | undefined {
  return checked(normalisedOnce(text, (parts) => (parts.includes('..') ? undefined : parts)));
}

/**
 * As {@link normalisePath}, with each `..` resolved, for a client's own file: nothing is let in by its name.
 * @returns undefined also for a path that leads out of its root.
 */
export function resolvePath(text: string): string | undefined {
  return checked(normalisedOnce(text, resolved));
}

/** What a second look would read differently has no normal form. */
const checked = (normal: string | undefined) =>
  normal !== undefined && normalisedOnce(normal, (parts) => parts) === normal ? normal : undefined;

function resolved(parts: Parts): Parts | undefined {
  const way: string[] = [];
  for (const part of parts) {
    if (part !== '..') way.push(part);
    else if (way.pop() === undefined) return undefined;
  }
  return way;
}

/** @param withoutUps what becomes of parts that may have `..` among them. */
function normalisedOnce(text: string, withoutUps: (parts: Parts) => Parts | undefined): string | undefined {
  const isUrl = FILE_URL.test(text);
  const decoded = isUrl ? pathOfUrl(text) : text;
  if (decoded === undefined || !isWellFormed(decoded) || /\p{Cc}/u.test(decoded)) return undefined;
  const slashed = decoded.normalize('NFC').replaceAll('\\', '/');
  const relative = slashed.startsWith(LONG_PATH) ? slashed.slice(LONG_PATH.length) : slashed;
  const parts = relative.split('/').filter((part) => part !== '' && part !== '.');
  // A drive alone, like `C:`, is a root.
  const named = withoutUps(DRIVE.test(parts[0] ?? '') ? parts.slice(1) : parts);
  return named?.length ? named.join('/') : undefined;
}

/** The decoded path of a `file:` URL, with its host as the first part unless that is this machine. */
function pathOfUrl(url: string): string | undefined {
  const [path] = url.replace(FILE_URL, '').split(URL_PATH_END, 1) as [string];
  try {
    return decodeURIComponent(path.replaceAll('\\', '/').replace(/^\/\/localhost(?=\/)/i, ''));
  } catch {
    return undefined;
  }
}
