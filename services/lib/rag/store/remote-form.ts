/** The one form in which remote URLs of git are compared and stored. Names and passwords are no part of it. */

/** git's short form, `user@host:path`. What has a slash before the colon is a path. */
const SHORT = /^(?:[^@/:\s]+@)?([^@/:\s]+):(?!\/\/)(\S+)$/;
/** A drive of Windows is not a host. */
const DRIVE = /^[A-Za-z]:[\\/]/;
/** Longest URL that is looked at. */
const MOST_CHARACTERS = 2_048;

/**
 * `host/path` of a remote URL in any of the forms that git takes: the host in lower case, without scheme, user,
 * password, port, `.git` and slashes at the end. Thus `git@github.com:a/b.git` is `https://github.com/a/b`.
 * @returns undefined for a path of this machine, and for what is not a URL.
 */
export function remoteForm(url: string): string | undefined {
  const trimmed = url.trim();
  if (trimmed === '' || trimmed.length > MOST_CHARACTERS || DRIVE.test(trimmed)) return undefined;
  const [, host, path] = SHORT.exec(trimmed) ?? hostAndPath(trimmed) ?? [];
  if (!host || path === undefined) return undefined;
  const name = decoded(path)
    .replace(/^\/+|\/+$/g, '')
    .replace(/\.git$/i, '');
  return name === '' ? undefined : `${host.toLowerCase()}/${name}`;
}

/** Percent-encoding that is not UTF-8 stays as it is. */
function decoded(path: string): string {
  try {
    return decodeURIComponent(path);
  } catch {
    return path;
  }
}

function hostAndPath(url: string): readonly [string, string, string] | undefined {
  if (!URL.canParse(url)) return undefined;
  const { protocol, hostname, pathname } = new URL(url);
  return protocol === 'file:' || hostname === '' ? undefined : [url, hostname, pathname];
}
