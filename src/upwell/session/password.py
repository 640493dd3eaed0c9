"""Password rules: what a new password must be (reference contract, 5.3; scenario A17).

Law: a password that its hash couldn't tell from another is refused always, a weak one where a person
chooses it at the set-up, or everywhere if complexity is enforced.
"""

from upwell.config import PASSWORD_BYTES_MAX
from upwell.errors import InvalidOperation

CHARS_MIN = 8
_COMMON_TEXT = """
00000000 0987654321 1111111111 11111111 112233445566 1234512345 12341234 12344321 123123123 12345678
123456789 1234567890 123456789a 1q2w3e4r 1q2w3e4r5t 1qaz2wsx 1qazxsw2 22222222 66666666 77777777
87654321 88888888 987654321 99999999 a1234567 a12345678 aa123456 aaaaaaaa abc12345 abcd1234 abcdefgh
access14 adminadmin admin123 admin1234 administrator asdf1234 asdfasdf asdfghjk asdfghjkl baseball
basketball butterfly changeme changeme123 chocolate computer corvette dragon123 football football1
google123 hello123 helloworld iloveyou iloveyou1 internet jennifer letmein1 letmein123 liverpool
login123 master123 maverick mercedes michelle midnight monkey123 mustang1 p@ssw0rd pa55word pass1234
passw0rd passw0rd1 password password1 password12 password123 password1234 password! password1! princess
princess1 q1w2e3r4 q1w2e3r4t5 qazwsxedc qwer1234 qwerty12 qwerty123 qwertyui qwertyuiop root1234
rootroot samantha samsung1 secret123 shadow123 starwars startrek steelers sunshine superman superuser
test1234 testtest trustno1 victoria welcome1 welcome123 whatever zaq12wsx zxcvbnm1 zxcvbnmm
"""
_COMMON = frozenset(_COMMON_TEXT.split())


def refuse_password(password: str, *, is_strict: bool = False) -> None:
    """Raise `InvalidOperation` for a new password that is empty, too long, or (`is_strict`) weak."""
    if not password:
        raise InvalidOperation("a password can't be empty")
    if len(password.encode()) > PASSWORD_BYTES_MAX:
        raise InvalidOperation(f"a password has at most {PASSWORD_BYTES_MAX} bytes")
    if is_strict:
        weakness = find_weakness(password) or find_missing(password)
        if weakness is not None:
            raise InvalidOperation(weakness)


def find_weakness(password: str) -> str | None:
    """Return what is wrong with a password that a person chose, None if nothing is."""
    if len(password) < CHARS_MIN:
        return f"Password must have at least {CHARS_MIN} characters"
    if len(password.encode()) > PASSWORD_BYTES_MAX:
        return f"Password must have at most {PASSWORD_BYTES_MAX} bytes"
    if password.lower() in _COMMON:
        return "Password is too common"
    return None


def find_missing(password: str) -> str | None:
    """Return which kinds of characters a complex password would need, None if it has them all."""
    kinds = {
        "an uppercase letter": any(c.isupper() for c in password),
        "a lowercase letter": any(c.islower() for c in password),
        "a digit": any(c.isdigit() for c in password),
        "a special character": any(not c.isalnum() and not c.isspace() for c in password),
    }
    missing = [kind for kind, is_there in kinds.items() if not is_there]
    return f"Password must contain {', '.join(missing)}" if missing else None
